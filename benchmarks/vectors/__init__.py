"""Test vectors for who writes the runtime again in another language: small inputs, and what has to come of them."""
