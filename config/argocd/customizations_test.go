// Package argocd runs the Lua that tells Argo CD about our kinds with Argo CD's own interpreter, on files in the form that
// Argo CD's repository has for its tests.
package argocd

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	appv1 "github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/gitops-engine/pkg/health"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const (
	customizations = "resource_customizations"
	configMapFile  = "argocd-cm.yaml"
)

var update = flag.Bool("update", false, "write "+configMapFile+" from the Lua files")

func read(t *testing.T, elements ...string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(elements...))
	require.NoError(t, err)
	return string(content)
}

func object(t *testing.T, elements ...string) *unstructured.Unstructured {
	t.Helper()
	// As from the API server: whole numbers are integers.
	text, err := yaml.YAMLToJSONStrict([]byte(read(t, elements...)))
	require.NoError(t, err)
	found := &unstructured.Unstructured{}
	require.NoError(t, found.UnmarshalJSON(text))
	return found
}

// Folders of kinds, such as resource_customizations/proving.rs/ProofJob.
func kinds(t *testing.T) []string {
	t.Helper()
	folders, err := filepath.Glob(filepath.Join(customizations, "*", "*"))
	require.NoError(t, err)
	require.Len(t, folders, 2)
	return folders
}

// Overrides as Argo CD reads them from its ConfigMap: nothing of the standard library is open.
func overrides(t *testing.T) map[string]appv1.ResourceOverride {
	t.Helper()
	data := object(t, configMapFile).Object["data"].(map[string]any)
	found := map[string]appv1.ResourceOverride{}
	for key, value := range data {
		kind, part, _ := strings.Cut(strings.TrimPrefix(key, "resource.customizations."), ".")
		group, name, _ := strings.Cut(part, "_")
		entry := found[group+"/"+name]
		switch kind {
		case "health":
			entry.HealthLua = value.(string)
		case "actions":
			entry.Actions = value.(string)
		default:
			t.Fatalf("%s is no key that Argo CD reads", key)
		}
		found[group+"/"+name] = entry
	}
	return found
}

func TestHealth(t *testing.T) {
	vm := lua.VM{ResourceOverrides: overrides(t)}
	for _, folder := range kinds(t) {
		var cases struct {
			Tests []struct {
				InputPath    string               `json:"inputPath"`
				HealthStatus *health.HealthStatus `json:"healthStatus"`
			} `json:"tests"`
		}
		require.NoError(t, yaml.UnmarshalStrict([]byte(read(t, folder, "health_test.yaml")), &cases))
		require.NotEmpty(t, cases.Tests)
		for _, test := range cases.Tests {
			t.Run(filepath.Join(filepath.Base(folder), test.InputPath), func(t *testing.T) {
				input := object(t, folder, test.InputPath)
				script, openLibraries, err := vm.GetHealthScript(input)
				require.NoError(t, err)
				require.False(t, openLibraries)
				status, err := vm.ExecuteHealthLua(input, script)
				require.NoError(t, err)
				assert.Equal(t, test.HealthStatus, status)
			})
		}
	}
}

func TestActions(t *testing.T) {
	vm := lua.VM{ResourceOverrides: overrides(t)}
	folder := filepath.Join(customizations, "proving.rs", "ProofJob", "actions")
	var cases struct {
		DiscoveryTests []struct {
			InputPath string                 `json:"inputPath"`
			Result    []appv1.ResourceAction `json:"result"`
		} `json:"discoveryTests"`
		ActionTests []struct {
			Action             string `json:"action"`
			InputPath          string `json:"inputPath"`
			ExpectedOutputPath string `json:"expectedOutputPath"`
		} `json:"actionTests"`
	}
	require.NoError(t, yaml.UnmarshalStrict([]byte(read(t, folder, "action_test.yaml")), &cases))
	for _, test := range cases.DiscoveryTests {
		t.Run("discovery/"+test.InputPath, func(t *testing.T) {
			input := object(t, folder, test.InputPath)
			scripts, err := vm.GetResourceActionDiscovery(input)
			require.NoError(t, err)
			found, err := vm.ExecuteResourceActionDiscovery(input, scripts)
			require.NoError(t, err)
			assert.ElementsMatch(t, test.Result, found)
		})
	}
	for _, test := range cases.ActionTests {
		t.Run(test.Action+"/"+test.InputPath, func(t *testing.T) {
			input := object(t, folder, test.InputPath)
			action, err := vm.GetResourceAction(input, test.Action)
			require.NoError(t, err)
			changed, err := vm.ExecuteResourceAction(input, action.ActionLua, nil)
			require.NoError(t, err)
			require.Len(t, changed, 1)
			assert.Equal(t, lua.PatchOperation, changed[0].K8SOperation)
			expected := object(t, folder, test.ExpectedOutputPath)
			assert.Equal(t, expected.Object, changed[0].UnstructuredObj.Object)
		})
	}
}

// What users put into Argo CD's ConfigMap is made from the Lua files.
func TestTheConfigMapIsWhatTheLuaFilesSay(t *testing.T) {
	expected := configMap(t)
	if *update {
		require.NoError(t, os.WriteFile(configMapFile, []byte(expected), 0o644))
	}
	assert.Equal(t, expected, read(t, configMapFile), "run `tools/test-gitops.sh update`")
}

func configMap(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	text.WriteString(`# Written from resource_customizations by ` + "`tools/test-gitops.sh update`" + `: do not edit.
# Merges into Argo CD's own ConfigMap, whose other keys stay as they are:
#   kubectl apply --server-side --field-manager prover-operator --filename config/argocd/argocd-cm.yaml
apiVersion: v1
kind: ConfigMap
metadata:
  name: argocd-cm
  namespace: argocd
data:
`)
	for _, folder := range kinds(t) {
		key := filepath.Base(filepath.Dir(folder)) + "_" + filepath.Base(folder)
		fmt.Fprintf(&text, "  resource.customizations.health.%s: |\n%s", key, indented(read(t, folder, "health.lua"), 4))
		actions, err := filepath.Glob(filepath.Join(folder, "actions", "*", "action.lua"))
		require.NoError(t, err)
		if len(actions) == 0 {
			continue
		}
		sort.Strings(actions)
		fmt.Fprintf(&text, "  resource.customizations.actions.%s: |\n    discovery.lua: |\n%s    definitions:\n",
			key, indented(read(t, folder, "actions", "discovery.lua"), 6))
		for _, action := range actions {
			fmt.Fprintf(&text, "      - name: %s\n        action.lua: |\n%s",
				filepath.Base(filepath.Dir(action)), indented(read(t, action), 10))
		}
	}
	return text.String()
}

// Lines moved to the right; empty ones stay empty.
func indented(text string, spaces int) string {
	var moved strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" {
			moved.WriteString(strings.Repeat(" ", spaces))
		}
		moved.WriteString(line)
	}
	return moved.String()
}
