package manifests_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weft-cni/weft/test/cluster"
)

// operator has the CRDs of the Prometheus operator.
const operator = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// TestMonitoring applies the variant with the operator's own CRDs, and compares
// what the alerts and the dashboard ask for with what a daemon exports.
func TestMonitoring(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2})
	for _, name := range []string{"servicemonitors", "prometheusrules"} {
		file := filepath.Join(moduleDir(t, operator), "example/prometheus-operator-crd/monitoring.coreos.com_"+name+".yaml")
		apply(t, c, objectsIn(t, readFile(t, file)))
	}
	manifest := objectsIn(t, kustomize(t, "monitoring"))
	apply(t, c, manifest)
	kubelet := newKubelet(t, c, manifest, "weftd")
	spec := &kubelet.set.Spec.Template.Spec.Containers[0]
	n, elsewhere := c.Node(1), c.Node(2)
	d := kubelet.start(t, n, spec)
	eventually(t, 20*time.Second, func() error { return d.probe(t, spec.ReadinessProbe) })

	var exported map[string][]string
	for _, address := range n.Underlay() {
		text, err := get(t, elsewhere, fmt.Sprintf("http://%s/metrics", netip.AddrPortFrom(address, uint16(spec.Ports[0].ContainerPort))))
		if err != nil {
			t.Fatalf("from another node: %v", err)
		}
		exported = series(string(text))
	}
	expressions := asked(t, manifest)
	for source, answer := range selections(t, expressions) {
		if answer.Error != "" {
			t.Errorf("%s: %s\n%s", source, answer.Error, expressions[source])
		}
		for _, s := range answer.Selections {
			labels, ok := exported[s.Metric]
			if !ok {
				t.Errorf("%s: no metric %s is exported", source, s.Metric)
				continue
			}
			for _, label := range s.Labels {
				if !slices.Contains(labels, label) {
					t.Errorf("%s: %s has no label %s, it has %v", source, s.Metric, label, labels)
				}
			}
		}
	}
	doc := string(readFile(t, "../../docs/monitoring.md"))
	for metric := range exported {
		base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(metric, "")
		if strings.HasPrefix(metric, "weft_") && !strings.Contains(doc, "| `"+base) {
			t.Errorf("docs/monitoring.md does not explain %s", base)
		}
	}
	for source := range expressions {
		if alert, ok := strings.CutPrefix(source, "alert "); ok && !strings.Contains(doc, "| `"+alert+"` |") {
			t.Errorf("docs/monitoring.md does not explain %s", source)
		}
	}
}

// Labels that Prometheus adds to what it scrapes.
var scraped = []string{"job", "instance", "node", "namespace", "pod", "service", "container", "endpoint"}

// series gives the names of metrics with those of their labels.
func series(text string) map[string][]string {
	found := map[string][]string{"up": scraped}
	label := regexp.MustCompile(`([a-zA-Z_]+)="(?:[^"\\]|\\.)*"`)
	for _, line := range regexp.MustCompile(`(?m)^([a-zA-Z_:]+)(\{.*\})? \S+$`).FindAllStringSubmatch(text, -1) {
		labels := slices.Clone(scraped)
		for _, l := range label.FindAllStringSubmatch(line[2], -1) {
			labels = append(labels, l[1])
		}
		found[line[1]] = labels
	}
	return found
}

// asked gives the expressions of alerts and panels, by where they are.
func asked(t *testing.T, manifest []*unstructured.Unstructured) map[string]string {
	t.Helper()
	expressions := map[string]string{}
	for _, o := range manifest {
		switch o.GetKind() {
		case "PrometheusRule":
			var rules struct {
				Spec struct {
					Groups []struct {
						Rules []struct{ Alert, Expr string }
					}
				}
			}
			remarshal(t, o.Object, &rules)
			for _, g := range rules.Spec.Groups {
				for _, r := range g.Rules {
					expressions["alert "+r.Alert] = r.Expr
				}
			}
		case "ConfigMap":
			text, ok, err := unstructured.NestedString(o.Object, "data", "weft.json")
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				maps.Copy(expressions, panels(t, text))
			}
		}
	}
	if len(expressions) < 20 {
		t.Fatalf("found %d expressions", len(expressions))
	}
	return expressions
}

func panels(t *testing.T, dashboard string) map[string]string {
	t.Helper()
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, RefID string }
		}
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	if err := json.Unmarshal([]byte(dashboard), &d); err != nil {
		t.Fatal(err)
	}
	expressions := map[string]string{}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			expressions["panel "+p.Title+" "+target.RefID] = strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
		}
	}
	for _, v := range d.Templating.List {
		if query := regexp.MustCompile(`^label_values\((.*), (.*)\)$`).FindStringSubmatch(v.Definition); query != nil {
			expressions["variable "+v.Name] = fmt.Sprintf("count by (%s) (%s)", query[2], query[1])
		}
	}
	return expressions
}

func remarshal(t *testing.T, from, to any) {
	t.Helper()
	text, err := json.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, to); err != nil {
		t.Fatal(err)
	}
}

// answer is what hack/promql says of an expression.
type answer struct {
	Error      string
	Selections []struct {
		Metric string
		Labels []string
	}
}

func selections(t *testing.T, expressions map[string]string) map[string]answer {
	t.Helper()
	sources := slices.Sorted(maps.Keys(expressions))
	texts := make([]string, 0, len(sources))
	for _, s := range sources {
		texts = append(texts, expressions[s])
	}
	input, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	var answers []answer
	if err := json.Unmarshal(goCommand(t, input, "run", "-C", "hack/promql", "."), &answers); err != nil {
		t.Fatal(err)
	}
	bySource := map[string]answer{}
	for i, s := range sources {
		bySource[s] = answers[i]
	}
	return bySource
}
