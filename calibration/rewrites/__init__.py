"""The same function in another form: what layers can take into themselves, and what runtimes have kernels for."""
