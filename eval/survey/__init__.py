"""Opinion survey: people see image pairs blind, say which looks more real, and a report says what they prefer."""
