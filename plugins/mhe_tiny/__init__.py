"""Registered below."""
