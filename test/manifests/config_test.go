package manifests_test

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/settings"
)

// TestConfigMapHasAllKeys reads the settings as they are shipped, and with all
// comments taken away from keys: both are the defaults, and no key is missing.
func TestConfigMapHasAllKeys(t *testing.T) {
	var file string
	for _, o := range objectsIn(t, readFile(t, "../../manifests/base/config.yaml")) {
		data, ok := o.Object["data"].(map[string]any)
		if !ok {
			t.Fatalf("no data in %s", o.GetName())
		}
		file, _ = data["weftd.yaml"].(string)
	}
	all := regexp.MustCompile(`(?m)^#`).ReplaceAllString(regexp.MustCompile(`(?m)^# [^ ].*$`).ReplaceAllString(file, ""), "")
	for name, text := range map[string]string{"as shipped": file, "with all keys": all} {
		s, err := settings.Parse([]byte(text), nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		if !reflect.DeepEqual(s, settings.Default()) {
			t.Errorf("%s: %+v, not the defaults", name, s)
		}
	}
	var section string
	var keys []string
	for _, line := range regexp.MustCompile(`(?m)^( *)([A-Za-z]+):(.*)$`).FindAllStringSubmatch(all, -1) {
		indent, key, value := line[1], line[2], line[3]
		switch {
		case value == "":
			section = key + "."
		case indent == "":
			keys = append(keys, key)
		default:
			keys = append(keys, section+key)
		}
	}
	var want []string
	for _, k := range settings.Keys() {
		want = append(want, k.Name)
	}
	slices.Sort(keys)
	slices.Sort(want)
	if !slices.Equal(keys, want) {
		t.Errorf("keys are\n%s\nnot\n%s", strings.Join(keys, "\n"), strings.Join(want, "\n"))
	}
}
