"""The inference operations, whichever transport asks for them."""
