"""The process that trains. The only place with torch and transformers."""
