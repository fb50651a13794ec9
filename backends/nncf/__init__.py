"""NNCF's quantisation after training, and its files brought into a runtime's form."""
