package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// accepted are the licences that allow what Weft does with others' code:
// distributing it with their texts.
var accepted = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT"}

var (
	isLicence = regexp.MustCompile(`(?i)^(licen[cs]e|copying|unlicense)([.-].*)?$`)
	// isNotice is what has to be passed on with a licence's text.
	isNotice = regexp.MustCompile(`(?i)^(notice|patents|copyright|authors)([.-].*)?$`)
)

// gather adds the licences and notices that are in dir and in the directories
// above it up to the module's, top.
func (m *module) gather(top, dir string) error {
	for {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() || filepath.Ext(e.Name()) == ".go" || !isLicence.MatchString(e.Name()) && !isNotice.MatchString(e.Name()) {
				continue
			}
			path := filepath.Join(dir, e.Name())
			name, err := filepath.Rel(top, path)
			if err != nil {
				return err
			}
			if m.texts[name], err = os.ReadFile(path); err != nil {
				return err
			}
		}
		if dir == top {
			return nil
		}
		if dir = filepath.Dir(dir); !strings.HasPrefix(dir, top) {
			return fmt.Errorf("%s is not below %s", dir, top)
		}
	}
}

// covered is how much of a licence's file has to be text that is known, in per
// cent: the rest is names of copyright holders.
const covered = 75

// classify gives the SPDX expression for the licences among texts.
func classify(texts map[string][]byte) (string, error) {
	found := map[string]bool{}
	for name, text := range texts {
		if !isLicence.MatchString(filepath.Base(name)) {
			continue
		}
		cover := licensecheck.Scan(text)
		if cover.Percent < covered {
			return "", fmt.Errorf("%s: %.0f %% of it are the text of a licence that is known", name, cover.Percent)
		}
		for _, m := range cover.Match {
			if !slices.Contains(accepted, m.ID) {
				return "", fmt.Errorf("%s is %s; accepted are %s", name, m.ID, strings.Join(accepted, ", "))
			}
			found[m.ID] = true
		}
	}
	if len(found) == 0 {
		return "", errors.New("no licence")
	}
	return strings.Join(slices.Sorted(maps.Keys(found)), " AND "), nil
}

// licences gives the texts of all modules by path, and a list of them.
func licences(modules []module) map[string]file {
	files := map[string]file{}
	var list strings.Builder
	list.WriteString("module,version,licence\n")
	for _, m := range modules {
		fmt.Fprintf(&list, "%s,%s,%s\n", m.path, m.version, m.licence)
		for name, text := range m.texts {
			files["licenses/"+m.path+"/"+filepath.ToSlash(name)] = file{data: text}
		}
	}
	files["licenses/list.csv"] = file{data: []byte(list.String())}
	return files
}
