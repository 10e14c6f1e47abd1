"""Seeded faults: small models that differ from a healthy twin by one planted fault, and the checks that must see it."""
