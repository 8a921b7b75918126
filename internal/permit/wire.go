package permit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pgbaton/pgbaton/internal/sidecar"
)

func number(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

func boolean(b bool) []byte { return strconv.AppendBool(nil, b) }

// array writes numbers as an array of the server's.
func array[T int32 | int64](numbers []T) []byte {
	text := []byte{'{'}
	for i, n := range numbers {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, int64(n), 10)
	}
	return append(text, '}')
}

// parseArray reads an array of numbers; NULL is none.
func parseArray[T int32 | int64](text []byte) ([]T, error) {
	inside := strings.Trim(string(text), "{}")
	if inside == "" {
		return nil, nil
	}
	words := strings.Split(inside, ",")
	numbers := make([]T, len(words))
	for i, word := range words {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errAnswer, err)
		}
		numbers[i] = T(n)
	}
	return numbers, nil
}

var errAnswer = errors.New("the server's answer does not fit the statement sent")

// claimAnswer is what pgbaton.claim_slots returns.
type claimAnswer struct {
	capacity, granted int // a capacity of 0 is NULL
	slots             []int32
	token             int64
}

func parseClaim(rows [][][]byte) (claimAnswer, error) {
	if len(rows) != 1 || len(rows[0]) != 4 {
		return claimAnswer{}, errAnswer
	}
	var answer claimAnswer
	var errs [4]error
	row := rows[0]
	if row[0] != nil {
		answer.capacity, errs[0] = strconv.Atoi(string(row[0]))
	}
	if row[1] != nil {
		answer.granted, errs[1] = strconv.Atoi(string(row[1]))
	}
	if answer.granted > 0 {
		answer.slots, errs[2] = parseArray[int32](row[2])
		answer.token, errs[3] = strconv.ParseInt(string(row[3]), 10, 64)
	}
	return answer, errors.Join(errs[:]...)
}

// freedAnswer is what pgbaton.free_slots returns.
type freedAnswer struct {
	places  map[int32]struct{}
	awaited []int64
}

func parseFreed(op *sidecar.Op) (freedAnswer, error) {
	if op.Err != nil {
		return freedAnswer{}, op.Err
	}
	if len(op.Rows) != 1 || len(op.Rows[0]) != 2 {
		return freedAnswer{}, errAnswer
	}
	places, err1 := parsePlaces(op.Rows[0][0])
	awaited, err2 := parseArray[int64](op.Rows[0][1])
	return freedAnswer{places, awaited}, errors.Join(err1, err2)
}

func parseRenewed(op *sidecar.Op) (map[int32]struct{}, error) {
	if op.Err != nil {
		return nil, op.Err
	}
	if len(op.Rows) != 1 || len(op.Rows[0]) != 1 {
		return nil, errAnswer
	}
	return parsePlaces(op.Rows[0][0])
}

// parsePlaces reads the places, counted from 1, of those in the arrays sent of which something is true.
func parsePlaces(text []byte) (map[int32]struct{}, error) {
	list, err := parseArray[int32](text)
	places := make(map[int32]struct{}, len(list))
	for _, place := range list {
		places[place] = struct{}{}
	}
	return places, err
}
