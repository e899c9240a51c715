"""Nouns, errors and services that every room may use; core imports no other room."""
