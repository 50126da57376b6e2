#!/usr/bin/env bash
# Every check that needs a GPU, in one call. Needs no Rust: it runs what `cargo xtask gpu-bundle` packed.
#
#   scripts/gpu-check.sh [PART...]      parts: kernels models sanitizer demo speed bench stream nvme (default: all)
#
#   SHAPES="8b:Q8_0 8b:Q4_K_M 1b:Q8_0"
#                      models of the speed part, SHAPE[:TYPE][@DEPTH]: random weights in that shape (1b, 8b, 70b, ...), of that type
#                      (QUANT if absent); tokens are generated after none and 512 others, and after DEPTH others
#   QUANT=Q8_0         the type of shapes that name none
#   PEERS=FILE.tar.xz  an archive with lcp/llama-bench, which is then measured on the same files
#   BARS=1             a speed or a benchmark below what scripts/gpu_report.py asks of it is a failure
#   BENCH="gpu attention boundary"  what the bench part measures; empty for all, the CPU too
#   STREAM="8b:Q8_0"   models of the stream part, SHAPE:TYPE; 70b and 32b-qwen2 have cases of their own
#   CASES=PATTERN      of these, the ones whose names match (seeds, prompt, Ctrl-C, "GiB at", disk, ...); all if absent
#   NVME=8b:Q8_0       the model of the nvme part, SHAPE:TYPE, that is streamed from a played drive
#   OUT=gpu-out        where the logs go
#   SCRATCH=/tmp       where the bundle is unpacked
#   MODELS=$SCRATCH    where models are written, one at a time (8b takes 9 GB, 70b:Q4_K_M 42 GB); /dev/shm is faster than a disk
#   TOTAL=570          seconds that all parts may take together
#
# All bars: BARS=1 PEERS=... SHAPES="8b:Q8_0@32768 8b:Q4_K_M 1b:Q8_0" scripts/gpu-check.sh speed bench; SHAPES=70b:Q4_K_M apart.
# A part that fails or runs out of time does not stop the others. The exit code is 1 if any did.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$(realpath -m "${OUT:-gpu-out}")
scratch=${SCRATCH:-/tmp}
models=${MODELS:-$scratch}
total=${TOTAL:-570}
export here out scratch models

parts=("$@")
[ $# -gt 0 ] || parts=(kernels models sanitizer demo speed bench stream nvme)
for part in "${parts[@]}"; do
    case $part in
    kernels | models | sanitizer | demo | speed | bench | stream | nvme) ;;
    *)
        sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        echo "unknown part: $part" >&2
        exit 2
        ;;
    esac
done

# The bundle is laid out as the repository, which the tests look for at NT_ROOT; the programs are in its bin/.
if [ -f "$here/bundle/bundle.tar.xz" ]; then
    export NT_ROOT=$scratch/nt-bundle
    rm -rf "$NT_ROOT"
    mkdir -p "$NT_ROOT"
    tar -xJf "$here/bundle/bundle.tar.xz" -C "$NT_ROOT" || exit 1
elif [ -d "$here/bin" ]; then
    export NT_ROOT=$here
else
    echo "$here/bundle/bundle.tar.xz is not there: cargo xtask gpu-bundle makes it" >&2
    exit 1
fi
export bin=$NT_ROOT/bin
export NT_BIN=$bin/ntransformer NT_TEST_GPU=1
mkdir -p "$out"
: >"$out/gpu-check.log"
cd "$NT_ROOT" || exit 1

results=()
failed=0
# check NAME SECONDS COMMAND...: runs a program or one of the functions below; shows the end of its output, and keeps all.
check() {
    local name=$1 limit=$2 start=$SECONDS code verdict
    shift 2
    printf '\n== %s\n' "$name"
    export log=$scratch/nt-check.log
    : >"$log"
    [ "$limit" -le $((total - SECONDS)) ] || limit=$((total - SECONDS))
    if [ "$limit" -gt 0 ]; then
        timeout --kill-after=10 "$limit" bash -uo pipefail -c '"$@"' check "$@" >"$log" 2>&1 </dev/null
        code=$?
    else
        code=124
    fi
    tail -n "${lines:-15}" "$log" | cut -c 1-180
    { printf '\n== %s\n' "$name" && cat "$log"; } >>"$out/gpu-check.log"
    case $code in
    0) verdict=pass ;;
    124 | 137) verdict="FAIL: stopped after $limit s" ;;
    *) verdict="FAIL: exit code $code" ;;
    esac
    [ $code = 0 ] || failed=1
    results+=("$(printf '%-24s %4d s  %s' "$name" $((SECONDS - start)) "$verdict")")
}

machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader || return 1
    for tool in nvcc compute-sanitizer python3; do
        command -v $tool >/dev/null && $tool --version 2>&1 | grep -i -m 1 -E 'release|version [0-9]|^python' | sed "s/^/$tool: /"
    done
    "$bin/ntransformer" --version
    df --human-readable --output=target,avail "$scratch" "$models" /dev/shm
    echo "$(nproc) cores, $(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo) of memory"
}

# Tests of the suite by their names. They print the device that they run on; that none ran on the GPU is a failure too.
suite_on_gpu() {
    "$bin/suite" --include-ignored --nocapture "$@" || return
    grep -q 'cuda:[0-9]' "$log" || { echo "no test named $* ran on the GPU"; return 1; }
}

# sanitize TOOL PROGRAM ARGS...
sanitize() {
    local tool=$1 code options=()
    shift
    # Tests of the driver make calls that it must refuse.
    [ "$tool" != memcheck ] || options=(--report-api-errors no)
    compute-sanitizer --tool "$tool" "${options[@]}" --error-exitcode 9 --print-limit 20 "$@"
    code=$?
    printf '\nWhat %s found, by kind:\n' "$tool"
    case "$*" in *suite*) grep -q 'cuda:[0-9]' "$log" || { echo "no test ran on the GPU"; code=1; } ;; esac
    echo "$(grep -oE '^========= (Error: [A-Za-z ]+|Invalid [a-z_]+ (read|write)|Warning: [A-Za-z ]+|[A-Z]+ SUMMARY:.*)' "$log" | sort | uniq -c)"
    return $code
}

prompt='Once upon a time'
export prompt
greedy() { "$bin/ntransformer" --prompt "$prompt" --n-predict 100 --temperature 0 "$@"; }

# same ARGS... -- ARGS...: two ways to run the demo model that must give the same text.
same() {
    local first=() a=$scratch/nt-a.txt b=$scratch/nt-b.txt
    while [ "$1" != -- ]; do
        first+=("$1")
        shift
    done
    shift
    greedy "${first[@]}" >"$a" || return
    greedy "$@" >"$b" || return
    [ "$(wc -w <"$a")" -ge 30 ] || { echo "the text is too short"; return 1; }
    cmp "$a" "$b" && echo "the same text: $(head -c 120 "$a")..."
}

# The demo model resident, and with four fifths of the memory that this takes. Some layers must have been streamed, or the
# comparison says nothing.
same_streamed() {
    local budget
    budget=$(greedy --device cuda --json --quiet | python3 -c '
import json, sys
memory = json.load(sys.stdin)["memory"]
print((memory["device_weights"] + memory["kv"] + memory["activations"]) * 4 // 5)') || return
    same --device cuda -- --device cuda --streaming --vram-budget "$budget" || return
    grep -qE '^streaming: .* come from RAM' "$log" || { echo "nothing was streamed"; return 1; }
}

# Perplexities of the held-out text's beginning, within 0.1 % of each other.
same_perplexity() {
    local text=$scratch/nt-text.txt device values=()
    head -n 60 assets/heldout.txt >"$text"
    for device in cpu cuda; do
        values+=("$("$bin/ntransformer" perplexity --file "$text" --device $device | sed -n 's/^perplexity: //p')")
    done
    awk -v cpu="${values[0]}" -v cuda="${values[1]}" 'BEGIN {
        if (cpu <= 0 || cuda <= 0) exit 1
        off = cuda / cpu - 1
        printf "perplexity on the CPU %s, on the GPU %s: off by %.4f %%\n", cpu, cuda, 100 * off
        exit !(off < 1e-3 && off > -1e-3)
    }'
}

# speed SHAPE[:TYPE][@DEPTH]: writes the model and measures what it generates, and the peer beside it.
speed() {
    local entry=${1%@*} depths=0,512 deep='' shape quant name model
    case $1 in *@*) deep=${1#*@} && depths=$depths,$deep ;; esac
    shape=${entry%:*} quant=${QUANT:-Q8_0}
    case $entry in *:*) quant=${entry#*:} ;; esac
    name=$shape-$quant
    model=$models/nt-$name.gguf
    # Also if this is stopped: the next model needs the room.
    # shellcheck disable=SC2064  # the name as it is now: the variable is gone by then
    trap "rm -f '$model' '$model.tmp'" EXIT
    "$NT_BIN" synth --force --shape "$shape" --quant "$quant" "$model" || return
    "$NT_BIN" bench --model "$model" --device cuda -p 0 -n 128 -d "$depths" -r 3 --profile -o json >"$out/speed-$name.json" || return
    if [ -n "${PEERS:-}" ]; then
        peer "$model" -d 0,512 >"$out/peer-$name.json" || echo "llama-bench failed"
        [ -z "$deep" ] || peer "$model" -d "$deep" -fa 1 >"$out/peer-$name-deep.json" || echo "llama-bench failed at depth $deep"
    fi
    python3 "$NT_ROOT/scripts/gpu_report.py" profile "$out/speed-$name.json" || return
    [ "${2:-}" != streamed ] || streamed "$model" "$name"
}

# peer MODEL ARGS...
peer() {
    local model=$1
    shift
    LD_LIBRARY_PATH=$scratch/lcp:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-} \
        "$scratch/lcp/llama-bench" -m "$model" -ngl 99 -p 0 -n 128 -r 3 "$@" -o json
}

# streamed MODEL NAME: resident, and with a third of the weights' memory, so that most layers are streamed: the same tokens.
streamed() {
    local model=$1 resident=$out/resident-$2.json streamed=$out/streamed-$2.json budget
    local generate=("$NT_BIN" --model "$model" --device cuda --prompt "$prompt" --n-predict 33 --temperature 0 --json)
    "${generate[@]}" >"$resident" || return
    budget=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["memory"]["device_weights"] // 3 + (1 << 30))' "$resident")
    "${generate[@]}" --streaming --vram-budget "$budget" >"$streamed" || return
    python3 "$NT_ROOT/scripts/gpu_report.py" streamed "$resident" "$streamed"
}

# stream SHAPE:TYPE: streams the model in the ways that issue bars name; tokens as when resident.
stream() {
    local shape=${1%:*} quant=${1#*:} model=$models/nt-stream.gguf cases
    # shellcheck disable=SC2064
    trap "rm -f '$model' '$model.tmp'" EXIT
    "$NT_BIN" synth --force --shape "$shape" --quant "$quant" "$model" || return
    local zero=GPUNVME_MAX_VRAM_LAYERS=0 half=GPUNVME_MAX_VRAM_LAYERS=16
    local seeds="--streaming --vram-budget 16GiB --ram-budget 20GiB"
    case $1 in
    70b:Q2_K | 32b-qwen2:*) cases=(
        "resident,tokens=4:"
        "seeds in 16 GiB and 20 GiB RAM,tokens=4,bar=97:$seeds"
        "seeds with disk,tokens=3,bar=90:--streaming --vram-budget 8GiB --ram-budget 8GiB"
    ) ;;
    70b:Q6_K) cases=(
        "resident,tokens=4:"
        "24 GiB,tokens=4,bar=97:--streaming --vram-budget 24GiB"
        "seeds with disk,tokens=2,bar=90:$seeds"
    ) ;;
    70b:*) cases=(
        "resident,tokens=4:--streaming"
        "16 GiB,tokens=4,bar=97:--streaming --vram-budget 16GiB"
        "24 GiB,tokens=4,bar=97:--streaming --vram-budget 24GiB"
        "16 GiB at 31 GB/s,tokens=4,bar=97:--streaming --vram-budget 16GiB --link-limit 31GB/s"
        "24 GiB at 6.5 GB/s,tokens=4,bar=97:--streaming --vram-budget 24GiB --link-limit 6.5GB/s"
        "8 GiB,tokens=4,bar=97:--streaming --vram-budget 8GiB"
        "16 GiB zero-copy,tokens=4:--streaming --vram-budget 16GiB --ram-access zero-copy"
        "no room (zero-copy),tokens=4:--streaming --vram-budget BELOW_RING"
        "seeds with disk,tokens=3,bar=90:$seeds"
        "Ctrl-C,interrupt=2:--streaming --vram-budget 16GiB --link-limit 6.5GB/s"
        "Ctrl-C while loading,interrupt=-1:--streaming --vram-budget 16GiB"
        "prompt resident,prompt=512:"
        "prompt in 16 GiB,prompt=512,bar=97:--streaming --vram-budget 16GiB"
    ) ;;
    *) cases=(
        "resident,tokens=33:"
        "all fits,tokens=33:--streaming"
        "none in VRAM,tokens=33,bar=98,$zero:--streaming"
        "half in VRAM,tokens=33,bar=97,$half:--streaming"
        "half at 31 GB/s,tokens=17,bar=97,$half:--streaming --link-limit 31GB/s"
        "half at 6.5 GB/s,tokens=9,bar=97,$half:--streaming --link-limit 6.5GB/s"
        "kernels one by one,tokens=17,$half,NT_NO_GRAPH=1:--streaming"
        "three layers of ring,tokens=17,$zero:--streaming --n-buffers 3"
        "one layer of ring,tokens=17,$zero:--streaming --n-buffers 1"
        "half on disk,tokens=5,$zero:--streaming --ram-budget 4GiB"
        "all on disk,tokens=3,bar=90,$zero:--streaming --ram-budget 0"
        "none zero-copy,tokens=33,$zero:--streaming --ram-access zero-copy"
        "half zero-copy,tokens=33,$half:--streaming --ram-access zero-copy"
        "no room (zero-copy),tokens=17:--streaming --vram-budget BELOW_RING"
        "disk and zero-copy,tokens=5,$zero:--streaming --ram-budget 4GiB --ram-access zero-copy"
        "disk by way of the page cache,tokens=3,$zero:--streaming --ram-budget 0 --disk-reads page-cache"
        "Ctrl-C,interrupt=1:--streaming --link-limit 1GB/s --vram-budget 4GiB"
        "Ctrl-C and the disk,interrupt=1,$zero:--streaming --ram-budget 0"
        "prompt resident,prompt=512:"
        "prompt streamed,prompt=512,bar=97,$zero:--streaming"
        "Ctrl-C zero-copy,interrupt=1,$zero:--streaming --ram-access zero-copy"
        "prompt of 8 by copies,prompt=8,$zero:--streaming"
        "prompt of 8 zero-copy,prompt=8,$zero:--streaming --ram-access zero-copy"
        "prompt of 512 zero-copy,prompt=512,$zero:--streaming --ram-access zero-copy"
    ) ;;
    esac
    python3 "$NT_ROOT/scripts/stream_check.py" --only "${CASES:-}" "$NT_BIN" "$model" "${cases[@]}"
}

# nvme_model SHAPE:TYPE: streams the model from a played drive that a kernel reads, tokens as when resident; and generates by the resident model
# while a kernel reads a drive, to see what each costs the other.
nvme_model() {
    local shape=${1%:*} quant=${1#*:} model=$models/nt-nvme.gguf
    # shellcheck disable=SC2064
    trap "rm -f '$model' '$model.tmp'" EXIT
    "$NT_BIN" synth --force --shape "$shape" --quant "$quant" "$model" || return
    NT_NVME_MODEL=$model suite_on_gpu --exact nvme_gpu::gpu::tokens_of_a_model_on_a_drive \
        nvme_gpu::gpu::decoding_beside_lists
}

speeds() { python3 "$NT_ROOT/scripts/gpu_report.py" speeds "$out"; }

# Its words are what to measure.
benchmarks() {
    # shellcheck disable=SC2086
    "$bin/bench-kernels" --bench ${BENCH-gpu attention boundary} --json "$out/bench.json" || return
    python3 "$NT_ROOT/scripts/gpu_report.py" bench "$out/bench.json"
}
export -f machine suite_on_gpu sanitize greedy same same_streamed same_perplexity speed peer streamed speeds benchmarks stream nvme_model

check machine 30 machine
for part in "${parts[@]}"; do
    case $part in
    kernels) check kernels 120 suite_on_gpu kernels::gpu:: link::gpu:: ;;
    models) check models 180 suite_on_gpu models:: zero_copy:: ;;
    sanitizer)
        check memcheck-kernels 120 sanitize memcheck "$bin/suite" --include-ignored --nocapture --test-threads 1 kernels::gpu::
        # racecheck looks at shared memory; what these two are about lies in global memory, and takes minutes there.
        check racecheck-kernels 150 sanitize racecheck "$bin/suite" --include-ignored --nocapture --test-threads 1 kernels::gpu:: \
            --skip gemv_beside --skip barriers
        check memcheck-nvme 60 sanitize memcheck "$bin/suite" --include-ignored --nocapture --test-threads 1 --exact nvme_gpu::gpu::lists_of_pages
        check memcheck-token 60 sanitize memcheck "$NT_BIN" --device cuda --prompt "$prompt" --n-predict 2
        check racecheck-token 60 sanitize racecheck "$NT_BIN" --device cuda --prompt "$prompt" --n-predict 2
        ;;
    demo)
        check demo-cuda-cpu 60 same --device cuda -- --device cpu
        check demo-streamed 60 same_streamed
        check demo-perplexity 90 same_perplexity
        ;;
    speed)
        rm -f "$out"/speed-*.json "$out"/peer-*.json
        [ -z "${PEERS:-}" ] || [ -d "$scratch/lcp" ] || check peers 60 tar -xJf "$here/$PEERS" -C "$scratch"
        # One of the models is streamed, too.
        more=streamed
        for model in ${SHAPES:-8b:Q8_0 8b:Q4_K_M 1b:Q8_0}; do
            lines=40 check "speed-$model" 500 speed "$model" "$more"
            more=
        done
        lines=40 check speeds 10 speeds
        ;;
    bench) lines=70 check bench 120 benchmarks ;;
    stream)
        for model in ${STREAM:-8b:Q8_0}; do
            lines=60 check "stream-$model" 500 stream "$model"
        done
        ;;
    nvme)
        # Each test has threads that spin: the played drive, and the one that copies doorbells.
        # They take turns by themselves (docs/nvme.md).
        check nvme-kernel 180 suite_on_gpu nvme_gpu::gpu:: --skip figures
        lines=40 check nvme-figures 120 suite_on_gpu --exact nvme_gpu::gpu::figures
        lines=40 check "nvme-${NVME:-8b:Q8_0}" 300 nvme_model "${NVME:-8b:Q8_0}"
        ;;
    esac
done

printf '\n== Result after %d s; all output is in %s\n' $SECONDS "$out/gpu-check.log"
printf '%s\n' "${results[@]}" | tee "$out/result.txt"
exit $failed
