"""Rows: JSON Lines, Arrow tables, conversations, word lists, atomic writes."""
