"""What is written to disk: pydantic documents, each with a schema version and migrations from every past one."""
