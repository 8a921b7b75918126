# Ends all processes whose working directory is $1 or below it, and removes $1, as soon as the standard input ends. See
# sandbox.go.
trap '' HUP INT QUIT TERM
dir=$1
while read -r word; do :; done

# The processes' directories in /proc. This shell's own working directory is /.
inside() {
  find /proc -mindepth 2 -maxdepth 2 -name cwd -lname "$dir[ /]*" 2>/dev/null
  find /proc -mindepth 2 -maxdepth 2 -name cwd -lname "$dir" 2>/dev/null
}

# send SIGNAL WHICH: sends a signal to PostgreSQL's servers or to all others.
send() {
  for cwd in $(inside); do
    process=${cwd%/cwd}
    kind=others
    [ "$(cat "$process/comm" 2>/dev/null)" = postgres ] && kind=servers
    [ $kind = "$2" ] && kill -"$1" "${process#/proc/}" 2>/dev/null
  done
}

# First the programs that would start a server again. A server that ends by itself leaves no shared memory behind; its
# data is thrown away, so it needs no clean shutdown. Some processes may have been stopped.
tries=0
while [ -n "$(inside)" ]; do
  send KILL others
  send CONT servers
  if [ $tries -lt 50 ]; then send QUIT servers; else send KILL servers; fi
  tries=$((tries + 1))
  sleep 0.1
done

rm -rf "$dir" 2>/dev/null
exit 0
