"""Scoring conventions, one small file each: rules, source, and the faults that are kept on purpose."""
