"""One way to say each thing: whatever torch exports, in the few operators that the tables know."""
