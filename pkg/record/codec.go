package record

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

const tempPrefix = "."

// fileName is unambiguous: neither name has a colon.
func fileName(containerID, ifName string) string { return containerID + ":" + ifName }

func validNames(containerID, ifName string) error { return nil }

func (a Attachment) validate() error { return validNames(a.ContainerID, a.IfName) }

func read(path string) (Attachment, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Attachment{}, fmt.Errorf("record: %w", err)
	}
	var a Attachment
	if err := json.Unmarshal(data, &a); err != nil {
		return Attachment{}, &CorruptError{Path: path, Err: err}
	}
	return a, nil
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

func (s Store) sync() error {
	d, err := os.Open(filepath.Clean(s.Dir))
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	defer d.Close()
	return d.Sync()
}
