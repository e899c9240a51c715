#!/bin/sh
# Compiles TensorRT plans of a model for the GPUs of this machine, and lets Triton run them.
#
#   ./build.sh [IMAGE]    in the container IMAGE, which has to be the one that serves
#   ./build.sh --here     with the trtexec that is here: in that container already
#
# Until it has ended well, Triton runs what it ran before.
set -eu

name=@NAME@
onnx=@ONNX@
image=@IMAGE@
strongly_typed_from=90000 # TensorRT 9.0; as trtexec writes 8.6.1 (v8601) and 10.0.1 (v100001)

folder=$(cd "$(dirname "$0")" && pwd)
model=$folder/models/$name
log=$folder/build.log

fail() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 1
}

if [ "${1-}" != --here ]; then
    image=${1-$image}
    command -v docker >/dev/null ||
        fail "there is no docker here; in a container of Triton: ./build.sh --here"
    # The files are to belong to whoever called.
    exec docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$folder:/package" \
        --entrypoint /bin/sh "$image" /package/build.sh --here
fi

trtexec=$(command -v trtexec || command -v /usr/src/tensorrt/bin/trtexec) ||
    fail "there is no trtexec, neither on PATH nor in /usr/src/tensorrt/bin"
command -v nvidia-smi >/dev/null ||
    fail "there is no nvidia-smi: no GPU, or the container was started without --gpus all"
export CUDA_DEVICE_ORDER=PCI_BUS_ID # the order of nvidia-smi
gpus=$(nvidia-smi --query-gpu=index,compute_cap --format=csv,noheader) ||
    fail "nvidia-smi cannot list the GPUs"
[ -n "$gpus" ] || fail "there is no GPU: plans are compiled on the GPU that runs them"

help=$("$trtexec" --help 2>&1) || true # some versions end with 1
version=$(printf '%s\n' "$help" | sed -n 's/.*\[TensorRT v\([0-9][0-9]*\)\].*/\1/p' | head -n 1)
[ -n "$version" ] || fail "$trtexec does not say its version"
[ "$version" -ge "$strongly_typed_from" ] ||
    fail "TensorRT v$version has no strongly typed networks: the plan would not have the" \
        "precision of the graph; take a newer container"
# The graph says each precision; TensorRT 11 always obeys it, versions before where they are told.
typed=
case $help in
*--stronglyTyped*) typed=--stronglyTyped ;;
*) [ "$version" -ge 110000 ] || fail "TensorRT v$version does not know --stronglyTyped" ;;
esac

trap 'rm -f "$model"/1/.*.new "$model"/.*.new' EXIT
made=
while IFS=', ' read -r index capability; do
    plan=model-sm$(printf '%s' "$capability" | tr -d .).plan
    case " $made " in *" $plan "*) continue ;; esac
    printf 'compiling %s for compute capability %s (GPU %s)\n' "$plan" "$capability" "$index"
    set -- "--onnx=$folder/$onnx" "--saveEngine=$model/1/.$plan.new" "--device=$index" @SHAPES@
    [ -z "$typed" ] || set -- "$@" "$typed"
    "$trtexec" "$@" </dev/null >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "trtexec failed, all that it said is in $log"
    }
    [ -s "$model/1/.$plan.new" ] || fail "trtexec wrote no plan; what it said is in $log"
    made="$made $plan"
done <<END
$gpus
END

# Plans of another version would not load beside these.
if [ "$(cat "$folder/plans.version" 2>/dev/null)" != "$version" ]; then
    rm -f "$model"/1/model-sm*.plan
fi
printf '%s\n' "$version" >"$folder/plans.version"
for plan in $made; do
    mv -f "$model/1/.$plan.new" "$model/1/$plan"
done

{
    cat "$folder/config.tensorrt.pbtxt"
    for path in "$model"/1/model-sm*.plan; do
        number=${path##*/model-sm}
        number=${number%.plan}
        minor=${number#"${number%?}"}
        printf 'cc_model_filenames {\n  key: "%s.%s"\n  value: "model-sm%s.plan"\n}\n' \
            "${number%?}" "$minor" "$number"
    done
} >"$model/.config.pbtxt.new"
mv -f "$model/.config.pbtxt.new" "$model/config.pbtxt"
printf 'Triton runs%s now (TensorRT v%s): start it again\n' "$made" "$version"
