"""A campaign of faults against the whole product: real processes, real servers, a ledger of its own, and a verdict. `make faults`."""
