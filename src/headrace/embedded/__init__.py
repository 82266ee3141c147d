"""The private server of a project: a real Valkey, started on first use, shared by its processes, kept between runs."""
