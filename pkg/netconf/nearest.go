package netconf

// Nearest is the known key that key is most likely a misspelling of; empty
// where none is near. The daemon's settings suggest by it as well.
func Nearest(key string, known []string) string { return nearest(key, known) }
