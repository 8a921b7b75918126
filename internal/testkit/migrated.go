package testkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/migrations"
)

// Migrated makes a database with the schema pgbaton on [Server], from the files alone: no table says which version it is.
func Migrated(tb testing.TB) string {
	tb.Helper()
	return MigratedOn(tb, Server(tb))
}

const (
	codeInUse             = "55006"
	codeNoDatabase        = "3D000"
	codeDuplicateDatabase = "42P04"
	codeUniqueViolation   = "23505"
)

// MigratedOn is [Migrated] on another server. The database is a copy of a template, since the files take a server half a
// second; a server that the tests were given keeps the template.
func MigratedOn(tb testing.TB, server string) string {
	tb.Helper()
	sql := upFiles(tb)
	sum := sha256.Sum256([]byte(sql))
	name, template := randomName(), "pgbaton_template_"+hex.EncodeToString(sum[:8])
	for end := time.Now().Add(Patience); ; {
		err := try(server, "CREATE DATABASE "+name+" TEMPLATE "+template)
		if err == nil {
			return private(tb, server, name)
		}
		require.True(tb, time.Now().Before(end), "%v", err)
		switch pgerr.Code(err) {
		case codeInUse: // by autovacuum, for example
			time.Sleep(50 * time.Millisecond)
		case codeNoDatabase:
			makeTemplate(tb, server, template, sql)
		default:
			require.NoError(tb, err)
		}
	}
}

var making sync.Mutex // a template

// makeTemplate makes a server's template, unless another test or process has. It is made under another name, so that it is
// whole under its own.
func makeTemplate(tb testing.TB, server, name, sql string) {
	tb.Helper()
	making.Lock()
	defer making.Unlock()
	if exists(tb, server, name) {
		return
	}
	draft := randomName()
	Run(tb, server, "CREATE DATABASE "+draft)
	Run(tb, database(tb, server, draft), sql)
	if err := try(server, "ALTER DATABASE "+draft+" RENAME TO "+name); err != nil {
		Run(tb, server, "DROP DATABASE "+draft+" WITH (FORCE)")
		// Another process was faster, perhaps by so little that only the catalog's index noticed.
		require.Contains(tb, []string{codeDuplicateDatabase, codeUniqueViolation}, pgerr.Code(err), "%v", err)
	}
}

func exists(tb testing.TB, server, name string) bool {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), server)
	require.NoError(tb, err)
	defer conn.Close(context.Background())
	return Value[bool](tb, conn, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name)
}

// upFiles are all migrations in one text.
func upFiles(tb testing.TB) string {
	tb.Helper()
	files, err := migrations.FS.ReadDir(".")
	require.NoError(tb, err)
	var all strings.Builder
	for _, file := range files {
		if strings.HasSuffix(file.Name(), ".up.sql") {
			sql, err := migrations.FS.ReadFile(file.Name())
			require.NoError(tb, err)
			all.Write(sql)
			all.WriteString("\n")
		}
	}
	return all.String()
}
