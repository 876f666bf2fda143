package netconf

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// ParseResult reads a CNI result, of whichever of Versions it is, into the
// newest form. A result that doesn't tell its version has that of the
// configuration, version.
func ParseResult(data []byte, version string) (*types100.Result, error) {
	var f map[string]json.RawMessage
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	if f == nil {
		return nil, fmt.Errorf("result: %w", ErrDecode)
	}
	var own string
	if raw, ok := f["cniVersion"]; ok {
		if err := json.Unmarshal(raw, &own); err != nil {
			return nil, fmt.Errorf("result: cniVersion: %w", err)
		}
	}
	if own == "" {
		own = version
		f["cniVersion"] = json.RawMessage(strconv.Quote(version))
		var err error
		if data, err = json.Marshal(f); err != nil {
			return nil, fmt.Errorf("result: %w", err)
		}
	}
	if !slices.Contains(Versions, own) {
		return nil, fmt.Errorf("result: %w: cniVersion is %q; accepted: %s", ErrVersion, own, list(Versions))
	}
	result, err := create.Create(own, data)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	newest, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	return newest, nil
}
