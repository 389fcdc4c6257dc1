// Package flux holds our objects against what Flux makes of them: its generic reading of conditions (kstatus) for
// ProverClusters, and the expressions of proofs.yaml for ProofJobs.
package flux

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// The objects that Argo CD's tests have too.
const objects = "../argocd/resource_customizations/proving.rs"

func object(t *testing.T, kind, name string) *unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(objects, kind, "testdata", name+".yaml"))
	require.NoError(t, err)
	text, err = yaml.YAMLToJSONStrict(text)
	require.NoError(t, err)
	found := &unstructured.Unstructured{}
	require.NoError(t, found.UnmarshalJSON(text))
	return found
}

func TestFluxWaitsForAProverClusterByItsConditionReady(t *testing.T) {
	for name, expected := range map[string]status.Status{
		"new":                   status.CurrentStatus, // nothing written yet: the next interval looks again
		"starting":              status.InProgressStatus,
		"changed":               status.InProgressStatus,
		"store-refused":         status.InProgressStatus,
		"unknown":               status.InProgressStatus,
		"workers-missing":       status.InProgressStatus,
		"ready-without-workers": status.CurrentStatus,
	} {
		t.Run(name, func(t *testing.T) {
			result, err := status.Compute(object(t, "ProverCluster", name))
			require.NoError(t, err)
			assert.Equal(t, expected, result.Status, result.Message)
		})
	}
}

func TestFluxNeedsExpressionsForTheEndOfAProofJob(t *testing.T) {
	for _, name := range []string{"queued", "running", "failed"} {
		result, err := status.Compute(object(t, "ProofJob", name))
		require.NoError(t, err)
		assert.Equal(t, status.CurrentStatus, result.Status, "without expressions %s counts as current", name)
	}

	evaluator := expressions(t)
	for name, expected := range map[string]status.Status{
		"not-accepted": status.InProgressStatus,
		"queued":       status.InProgressStatus,
		"running":      status.InProgressStatus,
		"suspended":    status.InProgressStatus,
		"resumed":      status.InProgressStatus,
		"succeeded":    status.CurrentStatus,
		"emulated":     status.CurrentStatus,
		"failed":       status.FailedStatus,
		"cancelled":    status.FailedStatus,
	} {
		t.Run(name, func(t *testing.T) {
			result, err := evaluator.Evaluate(t.Context(), object(t, "ProofJob", name))
			require.NoError(t, err)
			assert.Equal(t, expected, result.Status)
		})
	}
	// Flux counts a failed evaluation as unknown and asks again at its next poll.
	_, err := evaluator.Evaluate(t.Context(), object(t, "ProofJob", "new"))
	assert.ErrorContains(t, err, "no such attribute")
}

// The expressions for ProofJobs in proofs.yaml.
func expressions(t *testing.T) *cel.StatusEvaluator {
	t.Helper()
	text, err := os.ReadFile("proofs.yaml")
	require.NoError(t, err)
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var kustomization struct {
			Spec struct {
				HealthCheckExprs []kustomize.CustomHealthCheck `json:"healthCheckExprs"`
			} `json:"spec"`
		}
		require.NoError(t, yaml.Unmarshal([]byte(document), &kustomization))
		for _, check := range kustomization.Spec.HealthCheckExprs {
			if check.Kind == "ProofJob" {
				evaluator, err := cel.NewStatusEvaluator(&check.HealthCheckExpressions)
				require.NoError(t, err)
				return evaluator
			}
		}
	}
	t.Fatal("proofs.yaml has no expressions for ProofJobs")
	return nil
}
