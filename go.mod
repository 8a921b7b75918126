module github.com/pgbaton/pgbaton

go 1.25.0
