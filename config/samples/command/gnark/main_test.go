package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A small chain: what holds for it holds for a long one.
const testRounds = 2

func files(t *testing.T) func(string) string {
	folder := t.TempDir()
	return func(name string) string { return filepath.Join(folder, name) }
}

func write(t *testing.T, path string, contents []byte) {
	t.Helper()
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	contents, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return contents
}

func TestAProofIsAcceptedAndEachChangedBitRefused(t *testing.T) {
	at := files(t)
	if err := setup(at("bundle"), testRounds); err != nil {
		t.Fatal(err)
	}
	write(t, at("seed"), []byte("0x2a\n"))
	if err := prove(at("bundle"), at("seed"), at("proof"), at("end")); err != nil {
		t.Fatal(err)
	}
	if err := verify(at("bundle"), at("proof"), at("end")); err != nil {
		t.Fatal(err)
	}
	if len(read(t, at("end"))) != 32 {
		t.Fatal("the end of the chain has 32 bytes")
	}
	for _, name := range []string{"proof", "end"} {
		good := read(t, at(name))
		for index := range good {
			bad := bytes.Clone(good)
			bad[index] ^= 1
			write(t, at(name), bad)
			if verify(at("bundle"), at("proof"), at("end")) == nil {
				t.Fatalf("%s is accepted although byte %d is changed", name, index)
			}
		}
		write(t, at(name), append(bytes.Clone(good), 0))
		if verify(at("bundle"), at("proof"), at("end")) == nil {
			t.Fatalf("%s is accepted although a byte follows", name)
		}
		write(t, at(name), good)
	}
	if err := setup(at("other"), testRounds); err != nil {
		t.Fatal(err)
	}
	if verify(at("other"), at("proof"), at("end")) == nil {
		t.Fatal("a proof is accepted for another program")
	}
}

func TestWhatIsWrongWithProgramAndInputIsTheUsersFault(t *testing.T) {
	at := files(t)
	if err := setup(at("bundle"), testRounds); err != nil {
		t.Fatal(err)
	}
	write(t, at("seed"), []byte("a number"))
	write(t, at("cut"), read(t, at("bundle"))[:1000])
	write(t, at("good-seed"), []byte("7"))
	for _, wrong := range [][2]string{{"bundle", "seed"}, {"good-seed", "good-seed"}, {"cut", "good-seed"}} {
		err := prove(at(wrong[0]), at(wrong[1]), at("proof"), at("end"))
		if _, data := err.(badData); !data {
			t.Fatalf("%v: %v", wrong, err)
		}
	}
	if _, err := os.Stat(at("proof")); err == nil {
		t.Fatal("a proof was written")
	}
}
