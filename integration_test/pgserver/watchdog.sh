# Stops the PostgreSQL server in the directory $1/data and removes $1, as soon as the standard input ends.
# The line "stop" on it announces an orderly end. See watchdog.go.
trap '' HUP INT QUIT TERM
dir=$1
pidfile=$dir/data/postmaster.pid
orderly=
while read -r word; do orderly=$word; done

# The postmaster's process ID, if it is really this server's: after a crash the file outlives the
# process, and the number may belong to another one by now. (While initdb runs, the number is negative.)
postmaster() {
  pid=
  read -r pid 2>/dev/null <"$pidfile" || return 1
  pid=${pid#-}
  kill -0 "$pid" 2>/dev/null || return 1
  if [ -e /proc/self/cwd ]; then
    [ "$(readlink "/proc/$pid/cwd")" = "$dir/data" ]
  else
    case $(ps -p "$pid" -o comm=) in *postgres*) ;; *) return 1 ;; esac
  fi
}

# Killed in the middle of a start, the parent leaves initdb or pg_ctl behind: let the server appear.
if [ -z "$orderly" ]; then
  tries=0
  while [ ! -f "$pidfile" ] && [ $tries -lt 30 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
fi

# An immediate shutdown needs no disk, the data is thrown away. A test may have frozen the server.
if postmaster; then
  kill -CONT "$pid" 2>/dev/null
  kill -QUIT "$pid" 2>/dev/null
  tries=0
  while [ -f "$pidfile" ] && postmaster && [ $tries -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
  postmaster && kill -KILL "$pid" 2>/dev/null
fi

rm -rf "$dir" 2>/dev/null
if [ -z "$orderly" ]; then
  sleep 1
  rm -rf "$dir" 2>/dev/null
fi
exit 0
