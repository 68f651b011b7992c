"""Generating many answers at once. Imports torch: import its modules where they are used."""
