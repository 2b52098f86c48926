#!/usr/bin/env bash
# Builds the image and walks through what docs/operate/deploy.md says of it, by docker or podman. By hand, not in the
# suite: it takes minutes and, the first time, gigabytes.
#
#   tests/image/try_image.sh [MODEL]     MODEL: also pulled into a volume, and served from there with no hub
#
# ENGINE         docker or podman; the first that is there
# FOR            gpu or cpu; cpu where no NVIDIA driver is
# PORT           on 127.0.0.1, 8000
# BUILD_OPTIONS, RUN_OPTIONS, PULL_OPTIONS   words for `build`, for every `run`, and for the `run` that pulls
# BUILD=no       takes the image appliance:try as it is
set -euo pipefail
cd "$(dirname "$0")/../.."

ENGINE=${ENGINE:-$(basename "$(command -v docker || command -v podman || echo docker)")}
FOR=${FOR:-$(command -v nvidia-smi >/dev/null && echo gpu || echo cpu)}
PORT=${PORT:-8000}
IMAGE=appliance:try
NAME=appliance-try-$$
URL=http://127.0.0.1:$PORT
read -ra build_options <<<"${BUILD_OPTIONS:-}"
read -ra run_options <<<"${RUN_OPTIONS:-}"
read -ra pull_options <<<"${PULL_OPTIONS:-}"
[[ $ENGINE == podman ]] && build_options+=(--format docker) # or the image has no HEALTHCHECK
if [[ $FOR == gpu ]] && command -v nvidia-smi >/dev/null; then
    [[ $ENGINE == podman ]] && run_options+=(--device nvidia.com/gpu=all) || run_options+=(--gpus all)
    run_options+=(--shm-size 8g)
fi
work=$(mktemp -d)
chmod 711 "$work" # keys.json in it is read by the image's user

leave() {
    local code=$?
    "$ENGINE" logs "$NAME" >"$work/log" 2>&1 || true
    ((code == 0)) || { tail -n 20 "$work/log" >&2; echo "failed: $step" >&2; }
    "$ENGINE" rm --force "$NAME" >/dev/null 2>&1 || true
    "$ENGINE" volume rm --force "$NAME" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap leave EXIT

begin() { step=$1; began=$SECONDS; }
seen() { printf '%-58s %4s s   %s\n' "$step" "$((SECONDS - began))" "${1:-}"; }
die() { echo "$*" >&2; exit 1; }
serve() { # options of run, --, words of up
    local own=()
    while [[ $1 != -- ]]; do own+=("$1"); shift; done
    shift
    "$ENGINE" run -d --name "$NAME" "${run_options[@]}" --stop-timeout 45 -p "127.0.0.1:$PORT:8000" \
        -v "$NAME:/home/appliance" "${own[@]}" "$IMAGE" up "$@" >/dev/null
}
# The image's own HEALTHCHECK, asked at once.
health() { "$ENGINE" exec "$NAME" appliance status --quiet >/dev/null 2>&1; }
ready() {
    for ((i = 0; i < ${1:-120}; i++)); do
        health && return
        [[ $("$ENGINE" inspect --format '{{.State.Status}}' "$NAME") == running ]] || die "it ended"
        sleep 1
    done
    die "not ready in time"
}
ask() { # options of curl; prints the status, and leaves the answer in $work/answer
    curl -sS -o "$work/answer" -w '%{http_code}' "$@" "$URL/v1/chat/completions" \
        -H 'Content-Type: application/json' \
        -d '{"model": "default", "messages": [{"role": "user", "content": "Who are you?"}]}'
}
gone() { # stops the container within its time; fails unless it ends by itself with 0
    "$ENGINE" stop "$NAME" >/dev/null
    local code
    code=$("$ENGINE" inspect --format '{{.State.ExitCode}}' "$NAME")
    [[ $code == 0 ]] || die "exit code $code"
    "$ENGINE" rm "$NAME" >/dev/null
}

begin "build for $FOR by $ENGINE"
if [[ ${BUILD:-} != no ]]; then
    "$ENGINE" build "${build_options[@]}" --build-arg "FOR=$FOR" -t "$IMAGE" . >"$work/build" 2>&1 ||
        { tail -n 30 "$work/build" >&2; exit 1; }
fi
seen "$("$ENGINE" image inspect --format '{{.Size}}' "$IMAGE" | awk '{printf "%.2f GB", $1 / 1e9}')"

begin "the image has a health check, and no root"
[[ $("$ENGINE" image inspect --format '{{.Config.User}}' "$IMAGE") == 10001:10001 ]] || die "the user"
"$ENGINE" image inspect "$IMAGE" | grep -q '"appliance",' || die "no HEALTHCHECK"
seen

begin "stopped before it serves: gone at once"
serve -- --no-auth
sleep 0.5 # until Python runs: without a handler, a container's first process hears no SIGTERM
"$ENGINE" stop "$NAME" >/dev/null
((SECONDS - began < 15)) || die "it heard no SIGTERM"
"$ENGINE" rm "$NAME" >/dev/null
seen

begin "start: not healthy at first, then ready"
serve -- --no-auth
! health || die "healthy before it was ready"
ready
seen

begin "an answer through the published port"
[[ $(ask) == 200 ]] || die "$(cat "$work/answer")"
seen "$(grep -o '"content":"[^"]*"' "$work/answer")"

begin "SIGTERM lets a stream end, then exit code 0"
curl -sSN -o "$work/stream" "$URL/v1/completions" -H 'Content-Type: application/json' -d \
    '{"model": "default", "prompt": "Once", "max_tokens": 1000, "ignore_eos": true, "stream": true}' &
stream=$!
for ((i = 0; i < 100; i++)); do [[ -s $work/stream ]] && break; sleep 0.1; done
before=$(grep -c '^data' "$work/stream" || true)
gone
wait "$stream" || die "the stream was cut"
grep -q '^data: \[DONE\]' "$work/stream" || die "the stream did not end"
seen "$before of $(grep -c '^data' "$work/stream") events before SIGTERM"

begin "a key, made in the volume, is asked for by the next start"
key=$("$ENGINE" run --rm "${run_options[@]}" -v "$NAME:/home/appliance" "$IMAGE" key add try 2>/dev/null)
serve --
ready
[[ $(ask) == 401 ]] || die "without a key: $(cat "$work/answer")"
[[ $(ask -H "Authorization: Bearer $key") == 200 ]] || die "$(cat "$work/answer")"
other=$("$ENGINE" exec "$NAME" appliance key add other 2>/dev/null)
for ((i = 0; i < 50; i++)); do [[ $(ask -H "Authorization: Bearer $other") == 200 ]] && break; sleep 0.2; done
[[ $(ask -H "Authorization: Bearer $other") == 200 ]] || die "the second key: $(cat "$work/answer")"
seen "401 without, 200 with, and with one added while it runs"

begin "SIGKILL: the container goes, the next start is whole"
"$ENGINE" kill "$NAME" >/dev/null
"$ENGINE" rm --force "$NAME" >/dev/null
serve --
ready
[[ $(ask -H "Authorization: Bearer $key") == 200 ]] || die "$(cat "$work/answer")"
gone
seen

begin "a root file system that cannot be written to, no capability"
serve --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --
ready
[[ $(ask -H "Authorization: Bearer $key") == 200 ]] || die "$(cat "$work/answer")"
gone
seen

if [[ -n ${1:-} ]]; then
    begin "pull $1 into the volume"
    "$ENGINE" run --rm "${run_options[@]}" "${pull_options[@]}" -v "$NAME:/home/appliance" "$IMAGE" pull "$1" \
        >"$work/pull" 2>&1 || { tail -n 20 "$work/pull" >&2; exit 1; }
    seen
    begin "serve it from there, no hub to be reached"
    serve -e HF_ENDPOINT=http://127.0.0.1:9 -- "$1"
    ready 1800
    [[ $(ask -H "Authorization: Bearer $key") == 200 ]] || die "$(cat "$work/answer")"
    gone
    seen
fi

begin "a word that is no command"
code=0
"$ENGINE" run --rm "${run_options[@]}" "$IMAGE" serv >"$work/said" 2>&1 || code=$?
[[ $code == 2 ]] || die "exit code $code: $(cat "$work/said")"
seen "exit code $code"
echo "all seen"
