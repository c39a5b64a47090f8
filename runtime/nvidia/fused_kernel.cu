// Crop, mirror and resize of one photograph on the GPU, with the numbers of the library that the model's author used.
//
// Two kernels. `rows_pass` makes each row of the crop narrow, `columns_pass` makes the result short and writes it where the
// network reads its input. The weights are computed on the host (resize_taps.py says how) and lie with all sizes in a block of
// parameters in device memory, so a recorded CUDA graph serves for every crop, up to the sizes that memory was taken for.
// Integers are computed as Pillow and OpenCV compute them; floating point is never contracted (__fmul_rn, __fadd_rn), whatever
// the compiler's options.
//
// Bytes moved (a calculation; not yet measured on a GPU), for a crop of 2000 x 2000 to 384 x 384 with Pillow's filters: the
// crop is read once (12.0 MB), the narrow picture written once (2000 * 384 * 3 = 2.3 MB) and read once from memory (bilinear
// wants each of its rows for two results, the second time out of the L2 cache), the result written (0.44 MB): 17 MB. At 4.8
// TB/s (H200) that is 3.6 microseconds, at 204.8 GB/s (AGX Orin) 83. The bilinear filter has 12 taps there: 2000 * 384 * 3 *
// 12 + 384 * 384 * 3 * 12 = 33 million multiplications by weights, a few instructions each; so memory is the limit, and
// bicubic and lanczos with two and three times as many taps are near the point where arithmetic is. OpenCV's filters hold the
// narrow picture in four bytes a value: 31 MB.
// Where the crop lies in page-locked host memory (as on a Jetson, whose memory is shared), it is read from there, once.
//
// - A block of `rows_pass` takes ROWS (1, 2 or 4) rows into shared memory by loads of 16 bytes that neighbouring threads make
//   side by side; the sums of the rows (the receipt of what arrived) are made of the same registers. A weight is loaded
//   once for all rows of the block. Weights lie tap by tap, so that neighbouring threads read neighbouring ones.
// - A block of `columns_pass` makes one row of the result: reading and writing is side by side, the weights are the same for all
//   of its threads, and the sum of what was written needs no other block.
//
// Both run with THREADS threads in x. Shared memory: rows_pass ROWS * (pitch + 4) bytes, columns_pass THREADS * 8.

#define THREADS 256

// Numbers of the arithmetics, see ARITHMETICS in resize_taps.py.
enum Arithmetic { PILLOW, OPENCV_LINEAR, OPENCV_CUBIC, OPENCV_AREA_INTEGER, OPENCV_AREA_HALVES, OPENCV_AREA, TF_BILINEAR };

// The block of parameters, in words of 32 bits; see fused_kernel.py. Tables follow: column_first [w], row_first [h],
// column_weights [column_taps][w], row_weights [row_taps][h].
enum Parameter {
  TICKET,         // number of the frame, handed back with the receipts
  ARITHMETIC,     // one of the above
  CROP_HEIGHT,    // the part of the box that lies inside the frame, pixels
  CROP_WIDTH,
  PITCH,          // bytes from row to row of the crop, a multiple of 16
  BOX_HEIGHT,     // the box, which may reach beyond the frame and is black there
  BOX_WIDTH,
  ABOVE,          // black rows of the box above the crop
  BEFORE,         // black columns of the box left of the crop
  ROW_TAPS,
  COLUMN_TAPS,
  VECTOR_END,     // opencv-cubic: values of an unmirrored row from here on are computed in integers
  AREA_SCALE,     // opencv-area-integer: float32 1/area
  MIRRORED,
  HEADER_WORDS = 16
};

extern __shared__ uint4 shared_memory[];

__device__ inline int bounded(int value, int least, int most) { return value < least ? least : (value > most ? most : value); }

__device__ inline unsigned char grey_level(int value) { return (unsigned char)bounded(value, 0, 255); }

// Sum of the four bytes of each of four words.
__device__ inline unsigned sum_of_bytes(uint4 v) {
  const unsigned mask = 0x00ff00ffu;
  unsigned pairs = (v.x & mask) + ((v.x >> 8) & mask) + (v.y & mask) + ((v.y >> 8) & mask) + (v.z & mask) +
                   ((v.z >> 8) & mask) + (v.w & mask) + ((v.w >> 8) & mask);
  return (pairs & 0xffffu) + (pairs >> 16);
}

__device__ inline unsigned first_bytes(unsigned word, int count) {
  return count >= 4 ? word : (count <= 0 ? 0u : word & ((1u << (8 * count)) - 1u));
}

// The first bytes of sixteen; what lies behind the end of a row is no part of the picture.
__device__ inline uint4 first_bytes(uint4 v, int count) {
  if (count < 16) {
    v.x = first_bytes(v.x, count);
    v.y = first_bytes(v.y, count - 4);
    v.z = first_bytes(v.z, count - 8);
    v.w = first_bytes(v.w, count - 12);
  }
  return v;
}

// Rows of the crop into shared memory; their sums into sums[ROWS].
template <int ROWS>
__device__ inline void load_rows(const unsigned char* crop, const int* parameters, int first_row, uint4* tile, unsigned* sums) {
  const int pitch = parameters[PITCH], bytes = parameters[CROP_WIDTH] * 3, height = parameters[CROP_HEIGHT];
  unsigned mine[ROWS];
  for (int r = 0; r < ROWS; ++r) mine[r] = 0;
  for (int chunk = threadIdx.x; chunk * 16 < bytes; chunk += THREADS) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (first_row + r >= height) continue;
      const uint4 v = *(const uint4*)(crop + (unsigned long long)(first_row + r) * pitch + chunk * 16);
      tile[r * (pitch / 16) + chunk] = v;
      mine[r] += sum_of_bytes(first_bytes(v, bytes - chunk * 16));
    }
  }
  for (int r = 0; r < ROWS; ++r)
    if (mine[r]) atomicAdd(&sums[r], mine[r]);
}

// Weighted sums along ROWS rows of one value of the narrow picture; the pixels are taken in their order.
template <int ROWS>
__device__ inline void weigh(const unsigned char* pixels, int pitch, const int* weights, int taps, int width, int* sums) {
  for (int k = 0; k < taps; ++k) {
    const int weight = weights[k * width];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sums[r] += weight * (int)pixels[r * pitch + k * 3];
  }
}

template <int ROWS>
__device__ inline void weigh(const unsigned char* pixels, int pitch, const int* weights, int taps, int width, float* sums) {
  for (int k = 0; k < taps; ++k) {
    const float weight = __int_as_float(weights[k * width]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sums[r] = __fadd_rn(sums[r], __fmul_rn((float)pixels[r * pitch + k * 3], weight));
  }
}

// One value by TensorFlow's two neighbours, which clamp at the box's edge and are black outside of the crop.
__device__ inline float mixed(float lower, float upper, float share) {
  return __fadd_rn(lower, __fmul_rn(__fadd_rn(upper, -lower), share));
}

__device__ inline float pixel_in_box(const unsigned char* row, const int* parameters, int place, int channel) {
  const int column = bounded(place, 0, parameters[BOX_WIDTH] - 1) - parameters[BEFORE];
  return column >= 0 && column < parameters[CROP_WIDTH] ? (float)row[column * 3 + channel] : 0.0f;
}

// Args: crop uint8 [CROP_HEIGHT, PITCH], 16-byte aligned; parameters; narrow [CROP_HEIGHT, width, 3] uint8 (PILLOW), int32
// (OPENCV_* but AREA) or float32; receipts: TICKET, then the sum of each row of the crop; width of the result.
// Grid: one block for each ROWS rows of the largest crop.
template <int ROWS>
__device__ inline void rows_pass(const unsigned char* __restrict__ crop, const int* __restrict__ parameters,
                                 void* __restrict__ narrow, unsigned* __restrict__ receipts, int width, int height) {
  const int thread = threadIdx.x, first_row = blockIdx.x * ROWS;
  const int rows = parameters[CROP_HEIGHT], pitch = parameters[PITCH];
  if (first_row >= rows) return;
  unsigned* sums = (unsigned*)(shared_memory + ROWS * (pitch / 16));
  if (thread < ROWS) sums[thread] = 0;
  __syncthreads();
  load_rows<ROWS>(crop, parameters, first_row, shared_memory, sums);
  __syncthreads();
  if (thread < ROWS && first_row + thread < rows) receipts[1 + first_row + thread] = sums[thread];
  if (first_row == 0 && thread == 0) receipts[0] = parameters[TICKET];

  const unsigned char* tile = (const unsigned char*)shared_memory;
  const int* column_first = parameters + HEADER_WORDS;
  const int* column_weights = column_first + width + height;
  const int arithmetic = parameters[ARITHMETIC], taps = parameters[COLUMN_TAPS];
  for (int j = thread; j < width * 3; j += THREADS) {
    const int x = j / 3, channel = j - x * 3, first = column_first[x];
    const unsigned long long at = (unsigned long long)first_row * width * 3 + j;
    const int* weights = column_weights + x;
    if (arithmetic == TF_BILINEAR) {
      const float share = __int_as_float(weights[width]);
      for (int r = 0; r < ROWS && first_row + r < rows; ++r) {
        const unsigned char* row = tile + r * pitch;
        ((float*)narrow)[at + r * width * 3] =
            mixed(pixel_in_box(row, parameters, first, channel), pixel_in_box(row, parameters, first + 1, channel), share);
      }
    } else if (arithmetic == OPENCV_AREA) {
      float total[ROWS];
      for (int r = 0; r < ROWS; ++r) total[r] = 0.0f;
      weigh<ROWS>(tile + first * 3 + channel, pitch, weights, taps, width, total);
      for (int r = 0; r < ROWS && first_row + r < rows; ++r) ((float*)narrow)[at + r * width * 3] = total[r];
    } else {
      int total[ROWS];
      for (int r = 0; r < ROWS; ++r) total[r] = arithmetic == PILLOW ? 1 << 21 : 0;
      weigh<ROWS>(tile + first * 3 + channel, pitch, weights, taps, width, total);
      for (int r = 0; r < ROWS && first_row + r < rows; ++r) {
        if (arithmetic == PILLOW)
          ((unsigned char*)narrow)[at + r * width * 3] = grey_level(total[r] >> 22);
        else
          ((int*)narrow)[at + r * width * 3] = total[r];
      }
    }
  }
}

#define ROWS_PASS(ROWS)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                      \
      rows_pass_##ROWS(const unsigned char* __restrict__ crop, const int* __restrict__ parameters, void* __restrict__ narrow, \
                       unsigned* __restrict__ receipts, int width, int height) {                                             \
    rows_pass<ROWS>(crop, parameters, narrow, receipts, width, height);                                                      \
  }
ROWS_PASS(1)
ROWS_PASS(2)
ROWS_PASS(4)

// Where tap k of a result row lies in the narrow picture; -1 where the box is black.
__device__ inline int row_of_tap(const int* parameters, int place) {
  const int row = bounded(place, 0, parameters[BOX_HEIGHT] - 1) - parameters[ABOVE];
  return row < parameters[CROP_HEIGHT] ? row : -1;  // rows above the crop are negative by themselves
}

__device__ inline int whole_at(const void* narrow, int row, int stride, int j) {
  return row < 0 ? 0 : ((const int*)narrow)[(unsigned long long)row * stride + j];
}

__device__ inline float real_at(const void* narrow, int row, int stride, int j) {
  return row < 0 ? 0.0f : ((const float*)narrow)[(unsigned long long)row * stride + j];
}

__device__ inline int pillow_column(const unsigned char* narrow, const int* parameters, int first, const int* weights, int height,
                                    int stride, int j) {
  int total = 1 << 21;
  for (int k = 0; k < parameters[ROW_TAPS]; ++k) {
    const int row = row_of_tap(parameters, first + k);
    if (row >= 0) total += weights[k * height] * (int)narrow[(unsigned long long)row * stride + j];
  }
  return total >> 22;
}

__device__ inline int linear_column(const void* narrow, const int* parameters, int first, const int* weights, int height,
                                    int stride, int j) {
  int total = 2;
  for (int k = 0; k < 2; ++k)
    total += (weights[k * height] * (whole_at(narrow, row_of_tap(parameters, first + k), stride, j) >> 4)) >> 16;
  return total >> 2;
}

__device__ inline int cubic_column(const void* narrow, const int* parameters, int first, const int* weights, int height,
                                   int stride, int j) {
  const int x = j / 3, unmirrored = parameters[MIRRORED] ? (stride / 3 - 1 - x) * 3 + (j - x * 3) : j;
  int values[4];
  for (int k = 0; k < 4; ++k) values[k] = whole_at(narrow, row_of_tap(parameters, first + k), stride, j);
  if (unmirrored >= parameters[VECTOR_END]) {
    int total = 1 << 21;
    for (int k = 0; k < 4; ++k) total += weights[k * height] * values[k];
    return total >> 22;
  }
  float total = 0.0f;
  for (int k = 3; k >= 0; --k) {
    const float product = __fmul_rn((float)values[k], __fmul_rn((float)weights[k * height], 1.0f / 4194304.0f));
    total = k == 3 ? product : __fadd_rn(product, total);
  }
  return __float2int_rn(total);
}

__device__ inline int area_column(const void* narrow, const int* parameters, int first, const int* weights, int height, int stride,
                                  int j) {
  if (parameters[ARITHMETIC] == OPENCV_AREA) {
    float total = 0.0f;
    for (int k = 0; k < parameters[ROW_TAPS]; ++k) {
      const float value = real_at(narrow, row_of_tap(parameters, first + k), stride, j);
      total = __fadd_rn(total, __fmul_rn(__int_as_float(weights[k * height]), value));
    }
    return __float2int_rn(total);
  }
  int total = 0;
  for (int k = 0; k < parameters[ROW_TAPS]; ++k) total += whole_at(narrow, row_of_tap(parameters, first + k), stride, j);
  if (parameters[ARITHMETIC] == OPENCV_AREA_HALVES) return (total + 2) >> 2;
  return __float2int_rn(__fmul_rn((float)total, __int_as_float(parameters[AREA_SCALE])));
}

// Args: narrow as `rows_pass` left it; parameters; result [height, width, 3], float32 for TF_BILINEAR, else uint8; written: the
// sum of each row of the result, float32 [height], then TICKET once more for each row, from the block that made it: so no row
// of an earlier frame passes for one of this frame. Grid: one block for each row of the result.
extern "C" __global__ void __launch_bounds__(THREADS)
    columns_pass(const void* __restrict__ narrow, const int* __restrict__ parameters, void* __restrict__ result,
                 float* __restrict__ written, int width, int height) {
  const int thread = threadIdx.x, y = blockIdx.x, stride = width * 3, arithmetic = parameters[ARITHMETIC];
  const int* row_first = parameters + HEADER_WORDS + width;
  const int* weights = row_first + height + parameters[COLUMN_TAPS] * width + y;
  const int first = row_first[y];
  double sum = 0.0;
  for (int j = thread; j < stride; j += THREADS) {
    const int at = y * stride + j;
    if (arithmetic == TF_BILINEAR) {
      const float value = mixed(real_at(narrow, row_of_tap(parameters, first), stride, j),
                                real_at(narrow, row_of_tap(parameters, first + 1), stride, j), __int_as_float(weights[height]));
      ((float*)result)[at] = value;
      sum += value;
      continue;
    }
    int value;
    if (arithmetic == PILLOW)
      value = pillow_column((const unsigned char*)narrow, parameters, first, weights, height, stride, j);
    else if (arithmetic == OPENCV_LINEAR)
      value = linear_column(narrow, parameters, first, weights, height, stride, j);
    else if (arithmetic == OPENCV_CUBIC)
      value = cubic_column(narrow, parameters, first, weights, height, stride, j);
    else
      value = area_column(narrow, parameters, first, weights, height, stride, j);
    const unsigned char level = grey_level(value);
    ((unsigned char*)result)[at] = level;
    sum += level;
  }
  double* sums = (double*)shared_memory;
  sums[thread] = sum;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) {
    written[y] = (float)sums[0];
    ((int*)written)[height + y] = parameters[TICKET];
  }
}
