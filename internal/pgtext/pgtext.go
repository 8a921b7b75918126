// Package pgtext writes values as the text that PostgreSQL reads for a parameter, and reads the text of its answers.
//
// # What it guarantees
//
//   - What is written is one value, whatever it contains: a text in an array is quoted and escaped.
//   - What Ints and Bools write is read back by ParseInts and ParseBools as it was.
//   - NULL, a nil slice of bytes, is read as no elements. An answer that does not fit matches [ErrAnswer].
package pgtext

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrAnswer means that an answer is not what the statement returns.
var ErrAnswer = errors.New("the server's answer does not fit the statement sent")

// Int is a number.
func Int(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

// Bool is a boolean.
func Bool(b bool) []byte { return strconv.AppendBool(nil, b) }

// Ints is an array of numbers.
func Ints[T int32 | int64](values []T) []byte {
	return array(values, func(text []byte, n T) []byte { return strconv.AppendInt(text, int64(n), 10) })
}

// Bools is an array of booleans.
func Bools(values []bool) []byte { return array(values, strconv.AppendBool) }

var quoting = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// Texts is an array of texts.
func Texts(values []string) []byte {
	return array(values, func(text []byte, s string) []byte {
		return append(append(append(text, '"'), quoting.Replace(s)...), '"')
	})
}

func array[T any](values []T, element func([]byte, T) []byte) []byte {
	const about = 12 // bytes of an element
	text := append(make([]byte, 0, len("{}")+about*len(values)), '{')
	for i, value := range values {
		if i > 0 {
			text = append(text, ',')
		}
		text = element(text, value)
	}
	return append(text, '}')
}

// ParseInts reads an array of numbers, which has no NULL.
func ParseInts[T int32 | int64](text []byte) ([]T, error) {
	var sample T
	bits := 64
	if _, small := any(sample).(int32); small {
		bits = 32
	}
	return parse(text, func(word string) (T, error) {
		n, err := strconv.ParseInt(word, 10, bits)
		return T(n), err
	})
}

// ParseBools reads an array of booleans, which has no NULL.
func ParseBools(text []byte) ([]bool, error) { return parse(text, strconv.ParseBool) }

func parse[T any](text []byte, element func(string) (T, error)) ([]T, error) {
	if text == nil {
		return nil, nil
	}
	inside, opens := strings.CutPrefix(string(text), "{")
	inside, closes := strings.CutSuffix(inside, "}")
	switch {
	case !opens || !closes:
		return nil, fmt.Errorf("%w: %q is no array", ErrAnswer, text)
	case inside == "":
		return nil, nil
	}
	values := make([]T, 0, 1+strings.Count(inside, ","))
	for word := range strings.SplitSeq(inside, ",") {
		value, err := element(word)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
		}
		values = append(values, value)
	}
	return values, nil
}
