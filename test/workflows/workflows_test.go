// Package workflows_test holds the rules for .github/workflows: what they run is
// pinned, and none has rights that it doesn't need.
package workflows_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const root = "../../.github/"

// workflow is what the rules are about in a workflow's file.
type workflow struct {
	On          json.RawMessage   `json:"true"` // on is a boolean in YAML 1.1
	Permissions map[string]string `json:"permissions"`
	Jobs        map[string]job    `json:"jobs"`
}

type job struct {
	Uses        string            `json:"uses"` // of a whole workflow
	Permissions map[string]string `json:"permissions"`
	Timeout     int               `json:"timeout-minutes"`
	Steps       []step            `json:"steps"`
}

type step struct {
	Name, Uses, Run string
	With            map[string]any
}

// published are the workflows that may write to anything, by job and right.
var published = map[string]bool{
	"release.yml publish contents":        true,
	"release.yml publish packages":        true,
	"release.yml publish id-token":        true,
	"release.yml publish attestations":    true,
	"security.yml codeql security-events": true,
}

func TestWorkflows(t *testing.T) {
	files, err := filepath.Glob(root + "workflows/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no workflows: %v", err)
	}
	commits := map[string]string{} // of an action, the same everywhere
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pinned(t, string(text), commits)
			var w workflow
			if err := yaml.Unmarshal(text, &w); err != nil {
				t.Fatal(err)
			}
			if len(w.Jobs) == 0 {
				t.Error("it has no jobs")
			}
			if len(w.On) == 0 {
				t.Error("nothing starts it")
			}
			if w.Permissions == nil || len(w.Permissions) > 0 {
				t.Errorf("permissions for all jobs are %v: each job names its own", w.Permissions)
			}
			if strings.Contains(string(w.On), "pull_request_target") || strings.Contains(string(w.On), "workflow_run") {
				t.Error("it gives a stranger's change the rights of the repository")
			}
			for name, j := range w.Jobs {
				j.check(t, filepath.Base(file)+" "+name)
			}
		})
	}
}

func (j *job) check(t *testing.T, name string) {
	t.Helper()
	if j.Permissions == nil {
		t.Errorf("%s names no permissions", name)
	}
	for right, level := range j.Permissions {
		if level != "read" && !published[name+" "+right] {
			t.Errorf("%s may %s %s", name, level, right)
		}
	}
	if j.Timeout == 0 && j.Uses == "" {
		t.Errorf("%s has no timeout-minutes", name)
	}
	for i, s := range j.Steps {
		step := fmt.Sprintf("%s, step %s", name, cmp.Or(s.Name, fmt.Sprint(i+1)))
		if strings.HasPrefix(s.Uses, "actions/checkout@") && s.With["persist-credentials"] != false {
			t.Errorf("%s leaves its token in the checkout", step)
		}
		if strings.Contains(s.Run, "${{") {
			t.Errorf("%s: text from outside becomes part of a script; take it by way of env", step)
		}
	}
}

var (
	uses = regexp.MustCompile(`(?m)^[\s-]*uses:\s*(.*)$`)
	pin  = regexp.MustCompile(`^([\w.-]+/[\w./-]+)@([0-9a-f]{40}) # v\d+\.\d+\.\d+$`)
)

// pinned checks what a workflow uses: actions by commit, with the version as a
// comment, which Dependabot keeps up to date; or a workflow of ours.
func pinned(t *testing.T, text string, commits map[string]string) {
	t.Helper()
	for _, match := range uses.FindAllStringSubmatch(text, -1) {
		if strings.HasPrefix(match[1], "./.github/workflows/") {
			continue
		}
		parts := pin.FindStringSubmatch(match[1])
		if parts == nil {
			t.Errorf("uses: %s: it has to be OWNER/NAME@COMMIT # vX.Y.Z", match[1])
			continue
		}
		owner, rest, _ := strings.Cut(parts[1], "/")
		name, _, _ := strings.Cut(rest, "/")
		action := owner + "/" + name
		if other, ok := commits[action]; ok && other != parts[2] {
			t.Errorf("%s is used at %s here, at %s elsewhere", action, parts[2], other)
		}
		commits[action] = parts[2]
	}
}

// TestDependabotSeesEveryModule: a module in another place would be forgotten.
func TestDependabotSeesEveryModule(t *testing.T) {
	text, err := os.ReadFile(root + "dependabot.yml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Updates []struct {
			Ecosystem   string `json:"package-ecosystem"`
			Directory   string
			Directories []string
		}
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, update := range config.Updates {
		if update.Ecosystem != "gomod" {
			continue
		}
		if update.Directory != "" {
			update.Directories = append(update.Directories, update.Directory)
		}
		for _, dir := range update.Directories {
			found, err := filepath.Glob(filepath.Join("../..", dir, "go.mod"))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range found {
				seen[file] = true
			}
		}
	}
	for _, pattern := range []string{"../../go.mod", "../../*/go.mod", "../../*/*/go.mod", "../../*/*/*/go.mod"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if !seen[file] {
				t.Errorf("Dependabot doesn't look at %s", file)
			}
		}
	}
}
