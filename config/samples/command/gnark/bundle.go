package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/consensys/gnark-crypto/ecc"
	"github.com/consensys/gnark/backend/groth16"
	"github.com/consensys/gnark/constraint"
)

// A bundle is what a ProofJob submits as its program: the circuit, compiled, with its keys. Proofs are bound to its
// bytes. The verifying key comes first, so that a verifier reads no more than that.
//
//	magic, rounds (u32), then three sections, each a length (u64) and its bytes: verifying key, circuit, proving key
const (
	magic = "MIMCHAIN"
	// Most rounds of a circuit: about 3.3 million constraints.
	mostRounds = 10_000
	// Largest section, so that a broken length never takes all memory.
	mostSectionBytes = 4 << 30
)

var errNoBundle = errors.New("this is not a bundle: make one with `prover-sample-gnark setup`")

func writeBundle(path string, rounds int, circuit constraint.ConstraintSystem, proving groth16.ProvingKey, verifying groth16.VerifyingKey) error {
	var body bytes.Buffer
	body.WriteString(magic)
	number := binary.LittleEndian.AppendUint32(nil, uint32(rounds))
	body.Write(number)
	for _, section := range []func(io.Writer) (int64, error){verifying.WriteTo, circuit.WriteTo, proving.WriteRawTo} {
		var part bytes.Buffer
		if _, err := section(&part); err != nil {
			return err
		}
		body.Write(binary.LittleEndian.AppendUint64(nil, uint64(part.Len())))
		body.Write(part.Bytes())
	}
	return os.WriteFile(path, body.Bytes(), 0o644)
}

// bundle reads a bundle section by section.
type bundle struct {
	file   *os.File
	reader *bufio.Reader
	rounds int
}

func openBundle(path string) (*bundle, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	reader := bufio.NewReaderSize(file, 1<<20)
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(reader, head); err != nil || string(head[:len(magic)]) != magic {
		file.Close()
		return nil, errNoBundle
	}
	rounds := binary.LittleEndian.Uint32(head[len(magic):])
	if rounds == 0 || rounds > mostRounds {
		file.Close()
		return nil, fmt.Errorf("the bundle says %d rounds, 1 to %d are possible", rounds, mostRounds)
	}
	return &bundle{file: file, reader: reader, rounds: int(rounds)}, nil
}

func (bundle *bundle) close() { bundle.file.Close() }

func (bundle *bundle) section(name string, read func(io.Reader) (int64, error)) error {
	length := make([]byte, 8)
	if _, err := io.ReadFull(bundle.reader, length); err != nil {
		return fmt.Errorf("the bundle ends before its %s: %w", name, err)
	}
	size := binary.LittleEndian.Uint64(length)
	if size > mostSectionBytes {
		return fmt.Errorf("the %s of the bundle has %d bytes, which is too much", name, size)
	}
	section := io.LimitReader(bundle.reader, int64(size))
	if _, err := read(section); err != nil {
		return fmt.Errorf("the %s of the bundle is damaged: %w", name, err)
	}
	// A reader may stop before the end.
	_, err := io.Copy(io.Discard, section)
	return err
}

func (bundle *bundle) verifyingKey() (groth16.VerifyingKey, error) {
	key := groth16.NewVerifyingKey(ecc.BN254)
	return key, bundle.section("verifying key", key.ReadFrom)
}

func (bundle *bundle) circuit() (constraint.ConstraintSystem, error) {
	circuit := groth16.NewCS(ecc.BN254)
	return circuit, bundle.section("circuit", circuit.ReadFrom)
}

func (bundle *bundle) provingKey() (groth16.ProvingKey, error) {
	key := groth16.NewProvingKey(ecc.BN254)
	// The bundle's hash was checked when it was fetched: its points need not be checked one by one.
	return key, bundle.section("proving key", key.UnsafeReadFrom)
}
