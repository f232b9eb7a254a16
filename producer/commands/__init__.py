"""The commands of `ramole`: each parses, calls the client and prints."""
