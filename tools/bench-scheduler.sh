#!/usr/bin/env bash
# Benchmarks of the scheduler: bench-scheduler.sh [PART|all|judge|tables]...
#   1 2 3 4 5 proof   the workloads that need neither network nor store
#   engine            W1 through the coordinator's engine, without streams
#   live              W1 over gRPC on loopback: workers with shared and with own connections, and with the log
#   6                 W6 over gRPC and a MinIO of its own
#   baselines         a Postgres queue and a Redis list of their own, started from Debian's packages
#   takeover          from the end of a leader to the next one with its whole state: 1,000 jobs, 100,000 tasks, MinIO
#   all               everything
#   judge             holds what target/bench has against operator/bench/ranges.toml; done after every run
#   tables            writes what target/bench has into docs/benchmarks.md
# Servers run in a temporary folder on free ports and are stopped afterwards; nothing is installed as a service.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
results=$PWD/target/bench
work=$(mktemp -d)
chmod 755 "$work"
servers=()
stop() {
  for server in "${servers[@]}"; do kill "$server" 2>/dev/null || true; done
  for server in "${servers[@]}"; do wait "$server" 2>/dev/null || true; done
  rm -rf "$work"
}
trap stop EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# until SECONDS WHAT COMMAND...: waits for a server that was just started.
until_ready() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { echo "$what did not become ready" >&2; exit 1; }
    sleep 0.1
  done
}

need() { command -v "$1" >/dev/null || { echo "$1 is missing: apt-get install $2" >&2; exit 1; }; }

core() { "$target/release/scheduler" --results "$results" "$@"; }
live() { "$target/release/prover-bench-live" --results "$results" "$@"; }

postgres_address() {
  local binaries
  binaries=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
  [ -x "$binaries/initdb" ] || { echo "initdb is missing: apt-get install postgresql" >&2; exit 1; }
  mkdir "$work/postgres"
  # Postgres refuses to run as root.
  local as=()
  if [ "$(id -u)" = 0 ]; then
    chown nobody "$work/postgres"
    as=(setpriv --reuid=nobody --clear-groups)
  fi
  "${as[@]}" "$binaries/initdb" -D "$work/postgres/data" -U bench --auth=trust >"$work/initdb.log" 2>&1
  "${as[@]}" "$binaries/postgres" -D "$work/postgres/data" -k "$work/postgres" -c listen_addresses='' \
    -c max_connections=1100 -c shared_buffers=512MB -c max_wal_size=4GB >"$work/postgres.log" 2>&1 &
  servers+=($!)
  until_ready 30 Postgres "$binaries/pg_isready" -h "$work/postgres" -U bench
}

redis_port=
start_redis() {
  need redis-server redis-server
  redis_port=$(free_port)
  redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no --dir "$work" >"$work/redis.log" 2>&1 &
  servers+=($!)
  until_ready 10 Redis redis-cli -p "$redis_port" ping
}

minio_url=
start_minio() {
  local minio port
  minio=$(e2e/tools/build-minio.sh)
  port=$(free_port)
  mkdir -p "$work/minio/bench"
  export AWS_ACCESS_KEY_ID=bench AWS_SECRET_ACCESS_KEY=bench-secret
  MINIO_ROOT_USER=$AWS_ACCESS_KEY_ID MINIO_ROOT_PASSWORD=$AWS_SECRET_ACCESS_KEY \
    "$minio" server --address "127.0.0.1:$port" "$work/minio" >"$work/minio.log" 2>&1 &
  servers+=($!)
  until_ready 30 MinIO curl -sf "http://127.0.0.1:$port/minio/health/live"
  minio_url="s3://bench/w6?endpoint=http://127.0.0.1:$port&region=us-east-1&path-style=true"
}

judged=
run_one() {
  case $1 in
    1) core w1 ;;
    2) core w2 ;;
    3) core w3 ;;
    4) core w4 ;;
    5) core w5 ;;
    proof) core proof ;;
    live)
      live --threads "${THREADS:-2}" w1 --ahead "${AHEAD:-1}"
      live --threads "${THREADS:-2}" w1 --ahead "${AHEAD:-1}" --workers 1024 --together 1
      live --threads "${THREADS:-2}" w1 --ahead "${AHEAD:-1}" --workers 1024 --logged ;;
    engine) live engine ;;
    6) start_minio; live w6 --store "$minio_url" ;;
    takeover) start_minio; live takeover --store "$minio_url" ;;
    baselines)
      postgres_address
      start_redis
      live baselines --postgres "host=$work/postgres user=bench dbname=postgres" \
        --redis "redis://127.0.0.1:$redis_port" ;;
    all) for part in 1 2 3 4 5 proof engine live baselines 6 takeover; do run_one "$part"; done ;;
    judge) ;;
    tables) core judge --write docs/benchmarks.md; judged=yes ;;
    *) echo "there is no benchmark $1: see the head of tools/bench-scheduler.sh" >&2; exit 2 ;;
  esac
}

[ -n "${PREBUILT:-}" ] || cargo build --locked --release -p prover-bench -p prover-bench-live --bins
# Thousands of workers have a connection each, and both ends are in one process.
ulimit -n "$(ulimit -Hn)"
for part in "${@:-all}"; do run_one "$part"; done
[ -n "$judged" ] || core judge
