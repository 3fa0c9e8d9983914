"""What is sent for a row, what a reply is worth, and what is tried next when it does not fit."""
