package attach

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/veth"
	"github.com/weft-cni/weft/pkg/vf"
)

// Errors of this package's own.
var (
	// ErrNotReady says that the daemon hasn't told of the node since boot.
	ErrNotReady = errors.New("waiting for weftd's first sync since the node's boot")
	// ErrUnavailable and ErrLimited are of Status.
	ErrUnavailable = errors.New("no pod can be attached")
	ErrLimited     = errors.New("no pod can be attached, and those attached may not reach other nodes")
	// ErrNetns says that there is no pod's network namespace at CNI_NETNS.
	ErrNetns = errors.New("CNI_NETNS")
	// ErrAttached says that an ADD came twice, with no DEL between.
	ErrAttached = errors.New("attached already")
	// ErrDrift is what every *DriftError is.
	ErrDrift = errors.New("not as it was attached")
	// ErrIO is a failure to read standard input or write standard output.
	ErrIO = errors.New("input/output")
)

// Codes of errors: up to 99 the CNI specification's (section 5, "Error"), then
// Weft's own. docs/errors.md says what to do about each.
const (
	CodeVersion     uint = 1
	CodeUnsupported uint = 2
	CodeEnv         uint = 4
	CodeIO          uint = 5
	CodeDecode      uint = 6
	CodeConfig      uint = 7
	CodeNetns       uint = 8
	CodeTryAgain    uint = 11
	CodeUnavailable uint = 50
	CodeLimited     uint = 51
	CodeExhausted   uint = 100
	CodeAddrInUse   uint = 101
	CodeKernel      uint = 102
	CodeRecord      uint = 103
	CodeDrift       uint = 104
	CodeAttached    uint = 105
	CodeNoIPAM      uint = 106
	CodeDevice      uint = 107
	CodeDeviceInUse uint = 108
	CodeInternal    uint = 999
)

// codes tells the code of an error: that of the first line that is in its
// chain.
var codes = []struct {
	in   func(error) bool
	code uint
}{
	{is(netconf.ErrVersion), CodeVersion},
	{is(netconf.ErrUnsupported), CodeUnsupported},
	{is(netconf.ErrEnv), CodeEnv},
	{is(ErrIO), CodeIO},
	{is(ErrLimited), CodeLimited},
	{is(ErrUnavailable), CodeUnavailable},
	{is(ErrNotReady), CodeTryAgain},
	{is(netconf.ErrDecode), CodeDecode},
	{is(netconf.ErrConfig), CodeConfig},
	{is(ipam.ErrOutside), CodeConfig},
	{is(ErrNetns), CodeNetns},
	{is(flock.ErrTimeout), CodeTryAgain},
	{is(context.Canceled), CodeTryAgain},
	{is(context.DeadlineExceeded), CodeTryAgain},
	{is(ipam.ErrExhausted), CodeExhausted},
	{is(ipam.ErrTaken), CodeAddrInUse},
	{is(ErrDrift), CodeDrift},
	{is(ErrAttached), CodeAttached},
	{is(veth.ErrExists), CodeAttached},
	{is(vf.ErrExists), CodeAttached},
	{is(ErrDeviceInUse), CodeDeviceInUse},
	{is(ErrDevice), CodeDevice},
	{is(control.ErrRefused), CodeConfig},
	{is(control.ErrExhausted), CodeExhausted},
	{is(control.ErrTaken), CodeAddrInUse},
	{is(control.ErrNoDaemon), CodeTryAgain},
	{is(control.ErrNotYet), CodeTryAgain},
	{as[*veth.StationError], CodeAddrInUse},
	{is(ipam.ErrNoPlugin), CodeNoIPAM},
	{as[*veth.InUseError], CodeAddrInUse},
	{as[*veth.KernelError], CodeKernel},
	{as[*vf.RefusedError], CodeKernel},
	{as[*record.CorruptError], CodeRecord},
	{as[*fs.PathError], CodeIO},
	{as[*os.LinkError], CodeIO},
	{as[*os.SyscallError], CodeIO},
}

// Codes are all codes that Report gives an error of Weft's own.
func Codes() []uint {
	all := []uint{CodeInternal}
	for _, c := range codes {
		if !slices.Contains(all, c.code) {
			all = append(all, c.code)
		}
	}
	slices.Sort(all)
	return all
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func as[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

// Report is an error as the runtime gets it. The message is that of the whole
// chain; the code is the one that belongs to the error, or else that of what a
// delegated plugin said.
func Report(err error) *types.Error {
	// Errors that were joined have a line each.
	return types.NewError(code(err), strings.ReplaceAll(err.Error(), "\n", "; "), "")
}

func code(err error) uint {
	for _, c := range codes {
		if c.in(err) {
			return c.code
		}
	}
	if delegate := (*types.Error)(nil); errors.As(err, &delegate) {
		return delegate.Code
	}
	return CodeInternal
}
