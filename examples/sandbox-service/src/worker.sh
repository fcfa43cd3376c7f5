# Waits with a shell that has started. Each fork of the machine has its snippet in SNIPPET.
identity=$(/run/coracle/snippet-waits branch-here) || exit
eval "$identity"
unset identity
# The state of this shell's own generator is that of all forks.
RANDOM=$((0x${CORACLE_FORK_ID%????????????????????????}))
code=$SNIPPET
unset SNIPPET
eval "$code"
