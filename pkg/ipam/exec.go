package ipam

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// ErrNoPlugin says that the IPAM plugin is in none of CNI_PATH's directories.
var ErrNoPlugin = errors.New("no such IPAM plugin")

// outputDelay is how long a killed plugin's own children may keep its output
// open.
const outputDelay = time.Second

// run executes the plugin with a command and gives what it printed. This is
// what libcni's package invoke is for, which would bring the OpenTelemetry and
// HTTP libraries into a program that has to start in a millisecond.
func (d *Delegate) run(ctx context.Context, command string) ([]byte, error) {
	path, err := d.find()
	if err != nil {
		return nil, err
	}
	env := d.Env
	env.Command = command
	var stdout, stderr bytes.Buffer
	start := func() error {
		stdout.Reset()
		stderr.Reset()
		cmd := exec.CommandContext(ctx, path)
		cmd.Env = append(notCNI(os.Environ()), env.Vars()...)
		cmd.Stdin = bytes.NewReader(d.Config)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		cmd.WaitDelay = outputDelay
		return cmd.Run()
	}
	err = start()
	for errors.Is(err, syscall.ETXTBSY) && pause(ctx) {
		err = start() // it was just being installed
	}
	if err == nil {
		_, err = d.Log.Write(stderr.Bytes())
		return stdout.Bytes(), err
	}
	if ctx.Err() != nil {
		return nil, d.wrap(fmt.Errorf("%s: %w", command, context.Cause(ctx)))
	}
	var said types.Error
	if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Msg != "" {
		return nil, d.wrap(fmt.Errorf("%s: %w", command, &said))
	}
	return nil, d.wrap(fmt.Errorf("%s: %w: %q", command, err, bytes.TrimSpace(stderr.Bytes())))
}

// find looks for the plugin in the directories of CNI_PATH.
func (d *Delegate) find() (string, error) {
	for _, dir := range filepath.SplitList(d.Env.Path) {
		path := filepath.Join(dir, d.Type)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: %s is not in CNI_PATH (%s)", ErrNoPlugin, d.Type, d.Env.Path)
}

func (d *Delegate) wrap(err error) error {
	return fmt.Errorf("IPAM plugin %s: %w", d.Type, err)
}

// notCNI is environ without what is the plugin's own.
func notCNI(environ []string) []string {
	return slices.DeleteFunc(environ, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{
			"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH",
		}, name)
	})
}

// pause waits a moment, and reports whether ctx still runs.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}
