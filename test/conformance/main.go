// Command conformance tells what came out of runs of Kubernetes' own tests, as
// the tables of docs/conformance.md:
//
//	conformance DIR ...
//
// Each DIR has the JUnit reports of one set of specs, and its name is the set's.
package main

import (
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	failed, err := report(os.Stdout, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	if err != nil || failed {
		os.Exit(1)
	}
}

// report writes tables for the sets in dirs, and tells whether a spec failed.
func report(w io.Writer, dirs []string) (failed bool, err error) {
	if len(dirs) == 0 {
		return false, errors.New("a directory of reports is needed")
	}
	var all []set
	for _, dir := range dirs {
		s, err := read(dir)
		if err != nil {
			return false, err
		}
		all = append(all, s)
		failed = failed || s.count(specFailed) > 0
	}
	fmt.Fprint(w, "| Set | Specs | Passed | Failed | Not run | Seconds |\n|---|---|---|---|---|---|\n")
	for _, s := range all {
		fmt.Fprintf(w, "| %s | %d | %d | %d | %d | %.0f |\n", s.name, len(s.specs),
			s.count(specPassed), s.count(specFailed), s.count(specNotRun), s.took.Seconds())
	}
	for _, s := range all {
		s.areas(w)
		s.exceptions(w)
	}
	return failed, nil
}

type outcome int

const (
	specPassed outcome = iota
	specFailed
	specNotRun // it found while it ran that the cluster lacks something
)

type spec struct {
	name    string
	outcome outcome
	message string // the reason of the last two
}

// area is what a spec is about: what its name begins with.
func (s *spec) area() string {
	name := strings.TrimPrefix(s.name, "[sig-network] ")
	if end := verb.FindStringIndex(name); end != nil {
		return name[:end[0]]
	}
	return name
}

var verb = regexp.MustCompile(` (should|validates|has|works|can|updates|queries|will|creating) | \[`)

type set struct {
	name  string
	specs []spec
	took  time.Duration
}

func (s *set) count(o outcome) (n int) {
	for i := range s.specs {
		if s.specs[i].outcome == o {
			n++
		}
	}
	return n
}

// areas writes how many specs of each area passed.
func (s *set) areas(w io.Writer) {
	passed, total := map[string]int{}, map[string]int{}
	for i := range s.specs {
		area := s.specs[i].area()
		total[area]++
		if s.specs[i].outcome == specPassed {
			passed[area]++
		}
	}
	fmt.Fprintf(w, "\n### %s\n\n| Area | Passed |\n|---|---|\n", s.name)
	for _, area := range slices.Sorted(maps.Keys(total)) {
		fmt.Fprintf(w, "| %s | %d of %d |\n", area, passed[area], total[area])
	}
}

// exceptions writes which specs did not pass, and why.
func (s *set) exceptions(w io.Writer) {
	if s.count(specPassed) == len(s.specs) {
		return
	}
	fmt.Fprint(w, "\n| Spec | Did not pass because |\n|---|---|\n")
	for _, spec := range s.specs {
		if spec.outcome != specPassed {
			message, _, _ := strings.Cut(spec.message, "\n")
			fmt.Fprintf(w, "| %s | %s |\n", spec.name, strings.ReplaceAll(message, "|", `\|`))
		}
	}
}

// suite is a JUnit report as ginkgo writes it.
type suite struct {
	Suites []struct {
		Time  float64 `xml:"time,attr"`
		Cases []struct {
			Name    string `xml:"name,attr"`
			Status  string `xml:"status,attr"`
			Failure *struct {
				Message string `xml:"message,attr"`
			} `xml:"failure"`
			Error *struct {
				Message string `xml:"message,attr"`
			} `xml:"error"`
			Skipped *struct {
				Message string `xml:"message,attr"`
			} `xml:"skipped"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// read reads the reports of a set. Specs that were not asked for are in them as
// well, as skipped without a reason, and are left out.
func read(dir string) (set, error) {
	s := set{name: filepath.Base(dir)}
	files, err := filepath.Glob(filepath.Join(dir, "junit*.xml"))
	if err != nil {
		return s, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return s, err
		}
		var report suite
		if err := xml.Unmarshal(text, &report); err != nil {
			return s, fmt.Errorf("%s: %w", file, err)
		}
		for _, suite := range report.Suites {
			s.took += time.Duration(suite.Time * float64(time.Second))
			for _, c := range suite.Cases {
				one := spec{name: strings.TrimPrefix(c.Name, "[It] ")}
				reason := ""
				if c.Skipped != nil {
					_, reason, _ = strings.Cut(c.Skipped.Message, "skipped - ")
				}
				switch {
				case c.Failure != nil:
					one.outcome, one.message = specFailed, c.Failure.Message
				case c.Error != nil:
					one.outcome, one.message = specFailed, c.Error.Message
				case reason != "":
					one.outcome, one.message = specNotRun, reason
				case c.Status != "passed" || !strings.HasPrefix(c.Name, "[It] "):
					continue
				}
				s.specs = append(s.specs, one)
			}
		}
	}
	if len(s.specs) == 0 {
		return s, fmt.Errorf("no spec has run in %s", dir)
	}
	slices.SortFunc(s.specs, func(a, b spec) int { return cmp.Compare(a.name, b.name) })
	return s, nil
}
