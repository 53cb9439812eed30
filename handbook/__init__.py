"""The pages of the documentation that are made from the code: the reference of the API and of the specs."""
