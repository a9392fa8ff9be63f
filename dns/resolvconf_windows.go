package dns

// Windows keeps its resolvers per adapter and not in a file; New asks for
// them by name instead of guessing.
const hostResolvConf = ""
