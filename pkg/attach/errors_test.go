package attach_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/attach"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/veth"
	"github.com/weft-cni/weft/pkg/vf"
)

const delegates = 42 // a code that only a delegated plugin gives

// samples has an error for each code.
var samples = []struct {
	err  error
	code uint
}{
	{netconf.ErrVersion, 1},
	{netconf.ErrUnsupported, 2},
	{&netconf.InputError{Kind: netconf.ErrEnv}, 4},
	{attach.ErrIO, 5},
	{&fs.PathError{Op: "open", Path: "/x", Err: os.ErrPermission}, 5},
	{netconf.ErrDecode, 6},
	{fmt.Errorf("%w: %w", netconf.ErrConfig, netconf.ErrDecode), 6},
	{netconf.ErrConfig, 7},
	{ipam.ErrOutside, 7},
	{fmt.Errorf("%w: %w", attach.ErrNetns, os.ErrNotExist), 8},
	{fmt.Errorf("%w: %w", attach.ErrNotReady, netconf.ErrStale), 11},
	{flock.ErrTimeout, 11},
	{context.DeadlineExceeded, 11},
	{fmt.Errorf("%w: %w", attach.ErrUnavailable, attach.ErrNotReady), 50},
	{fmt.Errorf("%w: %w", attach.ErrLimited, attach.ErrNotReady), 51},
	{fmt.Errorf("%w: %w", attach.ErrUnavailable, types.NewError(999, "from the delegate", "")), 50},
	{ipam.ErrExhausted, 100},
	{ipam.ErrTaken, 101},
	{&veth.InUseError{}, 101},
	{&veth.KernelError{Err: os.ErrExist}, 102},
	{&record.CorruptError{Err: &fs.PathError{Err: os.ErrInvalid}}, 103},
	{&attach.DriftError{}, 104},
	{attach.ErrAttached, 105},
	{veth.ErrExists, 105},
	{ipam.ErrNoPlugin, 106},
	{fmt.Errorf("%w: no such device", attach.ErrDevice), attach.CodeDevice},
	{fmt.Errorf("%w by a/net1", attach.ErrDeviceInUse), attach.CodeDeviceInUse},
	{&vf.RefusedError{Change: "vf vlan 100", Err: syscall.EPROTONOSUPPORT}, attach.CodeKernel},
	{fmt.Errorf("net1: %w", vf.ErrExists), attach.CodeAttached},
	{errors.New("anything else"), 999},
	{types.NewError(delegates, "from a delegate", ""), delegates},
}

func TestCodes(t *testing.T) {
	for _, s := range samples {
		wrapped := fmt.Errorf("attach: %w", s.err)
		got := attach.Report(wrapped)
		if got.Code != s.code || got.Msg != wrapped.Error() {
			t.Errorf("%v: code %d, want %d; message %q", s.err, got.Code, s.code, got.Msg)
		}
	}
}

// TestCodesAreDocumented: docs/errors.md has a line for each code, in order,
// and none else. Each code has a sample above.
func TestCodesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/errors.md")
	must(t, err)
	var documented, sampled []uint
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \| .+ \| .+ \|$`).FindAllSubmatch(doc, -1) {
		code, err := strconv.Atoi(string(m[1]))
		must(t, err)
		documented = append(documented, uint(code))
	}
	for _, s := range samples {
		if s.code != delegates && !slices.Contains(sampled, s.code) {
			sampled = append(sampled, s.code)
		}
	}
	slices.Sort(sampled)
	if codes := attach.Codes(); !slices.Equal(codes, documented) || !slices.Equal(codes, sampled) {
		t.Errorf("codes:\n%v in the code\n%v in docs/errors.md\n%v have samples", codes, documented, sampled)
	}
}

// TestSegmentErrorsAreDocumented: docs/errors.md has what each error of a
// segment says, with its code.
func TestSegmentErrorsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/errors.md")
	must(t, err)
	for _, err := range []error{
		control.ErrNoDaemon, control.ErrNotYet, control.ErrRefused, control.ErrExhausted, control.ErrTaken,
		ipam.ErrOutside, ipam.ErrTaken, &veth.StationError{VNI: 1001, What: "…"},
	} {
		if row := fmt.Sprintf("\n| %#q (%d) |", err, attach.Report(err).Code); !strings.Contains(string(doc), row) {
			t.Errorf("docs/errors.md has no row %q", row)
		}
	}
}
