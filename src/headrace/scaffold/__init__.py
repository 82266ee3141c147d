"""New services from templates, and newer templates merged into them."""
