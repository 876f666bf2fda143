package netconf

import "errors"

// What is wrong with the plugin's input. Each has its own CNI error code (CNI
// specification, section 5, "Error").
var (
	ErrVersion     = errors.New("incompatible CNI version")            // code 1
	ErrUnsupported = errors.New("unsupported field")                   // code 2
	ErrEnv         = errors.New("invalid environment variable")        // code 4
	ErrDecode      = errors.New("configuration can't be decoded")      // code 6
	ErrConfig      = errors.New("invalid network configuration")       // code 7
	ErrStale       = errors.New("written before the node's last boot") // code 11, of ReadNode
)
