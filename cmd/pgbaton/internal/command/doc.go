// Package command is the command pgbaton: what each subcommand takes, says and exits with.
//
// Each subcommand has a file. Output for people goes to standard output, all that is about the call itself to standard error. An error has no
// password: connection strings are read by internal/dsn, and everything that is said is redacted once more.
package command
