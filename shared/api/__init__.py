"""Wire models of the HTTP services (pydantic): one module per service."""
