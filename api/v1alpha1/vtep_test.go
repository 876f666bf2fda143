package v1alpha1_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/testns"
)

func TestMain(m *testing.M) { cluster.Main(m) }

// TestAPIServerRefusesBadVTEPs gives a real API server each VTEP below
// testdata/bad, and compares what it says with the golden file beside it.
func TestAPIServerRefusesBadVTEPs(t *testing.T) {
	c := cluster.New(t, cluster.Options{Manifests: []string{"../../manifests/base/crds"}})
	client, err := dynamic.NewForConfig(c.API.Config)
	if err != nil {
		t.Fatal(err)
	}
	vteps := client.Resource(schema.GroupVersionResource{Group: "weft.dev", Version: "v1alpha1", Resource: "vteps"})
	create := func(t *testing.T, file string) error {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		spec := map[string]any{}
		if err = yaml.Unmarshal(data, &spec); err != nil {
			t.Fatal(err)
		}
		v := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "weft.dev/v1alpha1", "kind": "VTEP",
			"metadata": map[string]any{"name": "n1"},
			"spec":     spec,
		}}
		_, err = vteps.Create(t.Context(), v, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict, DryRun: []string{metav1.DryRunAll}})
		return err
	}
	for _, file := range glob(t, "testdata/good/*.yaml", 3) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			if err := create(t, file); err != nil {
				t.Error(err)
			}
		})
	}
	for _, file := range glob(t, "testdata/bad/*.yaml", 12) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			err := create(t, file)
			if err == nil {
				t.Fatal("it was taken")
			}
			testns.Golden(t, "bad/"+strings.TrimSuffix(filepath.Base(file), ".yaml")+".golden", err.Error()+"\n")
		})
	}
}

func glob(t *testing.T, pattern string, least int) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) < least {
		t.Fatalf("%d files like %s, want %d: %v", len(files), pattern, least, err)
	}
	return files
}

// TestColumns looks at what `kubectl get vteps` shows.
func TestColumns(t *testing.T) {
	c := cluster.New(t, cluster.Options{Manifests: []string{"../../manifests/base/crds"}})
	client, err := dynamic.NewForConfig(c.API.Config)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("testdata/good/dual.yaml")
	if err != nil {
		t.Fatal(err)
	}
	spec := map[string]any{}
	if err = yaml.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	_, err = client.Resource(schema.GroupVersionResource{Group: "weft.dev", Version: "v1alpha1", Resource: "vteps"}).Create(t.Context(),
		&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "weft.dev/v1alpha1", "kind": "VTEP", "metadata": map[string]any{"name": "n1"}, "spec": spec,
		}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	table := &metav1.Table{}
	raw, err := c.API.Client.Discovery().RESTClient().Get().AbsPath("/apis/weft.dev/v1alpha1/vteps").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, table); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i, column := range table.ColumnDefinitions {
		cell := table.Rows[0].Cells[i]
		if column.Name == "Age" {
			cell = "(age)"
		}
		text, err := yaml.Marshal(map[string]any{column.Name: cell})
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(strings.Repeat("wide: ", int(column.Priority)) + string(text))
	}
	testns.Golden(t, "columns.golden", b.String())
}
