package kernel

// Event says that something changed in the kernel.
type Event struct {
	// Key says where. For KindLink the whole link is in question, with all
	// that is on it.
	Key Key
	// Object is what is there now, nil if it is gone or not told: whoever
	// made the change knows its own by it.
	Object Object
	// Lost is set when events were dropped: anything may have changed. Key is
	// zero.
	Lost bool
	// Underlay is set when an interface or address that isn't ours changed:
	// the node's way out may have. Key is zero.
	Underlay bool
}
