#!/usr/bin/env bash
# The cluster scenarios that fit into continuous integration: a proof in the user's own image, scaling from zero and back,
# a lost worker, lost leaders, an absent operator and a real proof meanwhile, edits, a new image, hostile workers, bad
# input. A cluster that ran before goes on running.
set -euo pipefail
cd "$(dirname "$0")/.."
scenarios=(
  an_emulated_job_runs_in_pods
  a_gnark_proof_is_made_in_the_users_own_image
  two_jobs_of_two_namespaces
  workers_come_from_zero
  a_worker_pod_deleted_mid_segment
  jobs_run_to_their_end_while_the_operator_is_absent
  leaders_killed_at_random_moments
  a_changed_group_gets_a_new_deployment
  jobs_pinned_to_an_old_image
  applying_the_same_manifest_again
  a_bad_program_fails_its_job
  an_image_that_is_not_there
  a_hostile_worker_gets_nothing
)
folder=${PROVER_CLUSTER_DIRECTORY:-${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}/cluster}
if [ ! -e "$folder/admin.kubeconfig" ]; then
  trap e2e/cluster/down.sh EXIT
fi
tools/test.sh cluster "${scenarios[@]}"
